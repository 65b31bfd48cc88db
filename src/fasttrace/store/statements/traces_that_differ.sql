-- A fact of the batch that the run has with other counterfactuals, in whatever order, or with another o_false. Traces
-- of schema version 8 have no counterfactuals (NULL) where the fact was left out.
SELECT
    batch.fact_id,
    coalesce(list_sort(batch.counterfactuals) <> list_sort(traces.counterfactuals), false) AS others
FROM batch_traces AS batch
JOIN traces ON traces.run_id = $run_id AND traces.fact_id = batch.fact_id
WHERE others OR batch.target_false IS DISTINCT FROM traces.target_false
ORDER BY batch.fact_id
LIMIT 1;
