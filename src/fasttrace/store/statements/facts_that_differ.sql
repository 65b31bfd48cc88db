-- Facts of the batch whose fact_id the store already uses for something else. counterfactuals = whether only these
-- differ, and the target_false that they may bring. A fact without either is the same fact.
WITH stored AS (
    SELECT *, coalesce(counterfactual_subject, []) AS subjects, coalesce(counterfactual_prompt, []) AS prompts
    FROM facts
),
batch AS (
    SELECT *, coalesce(counterfactual_subject, []) AS subjects, coalesce(counterfactual_prompt, []) AS prompts
    FROM batch_facts
),
both_sides AS (
    SELECT
        batch.fact_id,
        (stored.prompt, stored.subject, stored.target_true)
            IS DISTINCT FROM (batch.prompt, batch.subject, batch.target_true)
        OR stored.paraphrases IS DISTINCT FROM batch.paraphrases
        OR stored.neighborhood IS DISTINCT FROM batch.neighborhood
        OR stored.target_prefix IS DISTINCT FROM batch.target_prefix AS another,
        stored.target_false IS DISTINCT FROM batch.target_false AS another_false,
        len(stored.subjects) + len(stored.prompts) > 0 AS stored_has,
        len(batch.subjects) + len(batch.prompts) > 0 AS batch_has,
        stored_has AND batch_has
            AND (stored.subjects <> batch.subjects OR stored.prompts <> batch.prompts) AS others,
        (batch_has AND NOT stored_has AND stored.target_false IS NULL)
        OR (stored_has AND NOT batch_has AND batch.target_false IS NULL) AS brought
    FROM batch
    JOIN stored ON stored.fact_id = batch.fact_id
)
SELECT fact_id, others AND NOT another AS counterfactuals
FROM both_sides
WHERE another OR others OR (another_false AND NOT brought)
ORDER BY fact_id
LIMIT 1;
