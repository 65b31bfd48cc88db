-- Gives stored facts that have no counterfactuals those of the batch, and the target_false that comes with them.
UPDATE facts
SET
    counterfactual_subject = batch.counterfactual_subject,
    counterfactual_prompt = batch.counterfactual_prompt,
    target_false = batch.target_false
FROM batch_facts AS batch
WHERE batch.fact_id = facts.fact_id
  AND coalesce(len(facts.counterfactual_subject), 0) + coalesce(len(facts.counterfactual_prompt), 0) = 0
  AND coalesce(len(batch.counterfactual_subject), 0) + coalesce(len(batch.counterfactual_prompt), 0) > 0;
