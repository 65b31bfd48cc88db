-- Facts of the batch that the run has with other counterfactuals, or another o_false, whatever their order. An o_false
-- that only one of them has leaves its other values as they are.
SELECT batch.fact_id, batch.target_false <> traces.target_false AS false
FROM batch_traces AS batch
JOIN traces ON traces.run_id = $run_id AND traces.fact_id = batch.fact_id
WHERE list_sort(coalesce(batch.counterfactuals, [])) <> list_sort(coalesce(traces.counterfactuals, []))
   OR batch.target_false <> traces.target_false
ORDER BY batch.fact_id
LIMIT 1;
