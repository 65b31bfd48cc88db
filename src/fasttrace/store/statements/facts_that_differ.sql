-- Facts of the batch whose fact_id the store already uses for something else. counterfactuals = whether only these
-- differ; a fact without any is the same fact.
WITH paired AS (
    SELECT
        batch.fact_id,
        (facts.prompt, facts.subject, facts.target_true)
            IS DISTINCT FROM (batch.prompt, batch.subject, batch.target_true)
        OR facts.target_false IS DISTINCT FROM batch.target_false
        OR facts.paraphrases IS DISTINCT FROM batch.paraphrases
        OR facts.neighborhood IS DISTINCT FROM batch.neighborhood
        OR facts.target_prefix IS DISTINCT FROM batch.target_prefix AS another,
        coalesce(facts.counterfactual_subject, []) AS subjects,
        coalesce(facts.counterfactual_prompt, []) AS prompts,
        coalesce(batch.counterfactual_subject, []) AS batch_subjects,
        coalesce(batch.counterfactual_prompt, []) AS batch_prompts
    FROM batch_facts AS batch
    JOIN facts ON facts.fact_id = batch.fact_id
)
SELECT fact_id, NOT another AS counterfactuals
FROM paired
WHERE another OR (
    len(subjects) + len(prompts) > 0
    AND len(batch_subjects) + len(batch_prompts) > 0
    AND (subjects <> batch_subjects OR prompts <> batch_prompts)
)
ORDER BY fact_id
LIMIT 1;
