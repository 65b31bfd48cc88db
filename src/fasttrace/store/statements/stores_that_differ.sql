-- An id that stands for different things in several stores: what it names, the id, and its stores. A fact without
-- counterfactuals is the same fact, also without the target_false that they may bring. At most one row.
WITH every AS (
    SELECT *, coalesce(len(counterfactual_subject), 0) + coalesce(len(counterfactual_prompt), 0) > 0 AS paired
    FROM main.facts
),
filled AS (
    SELECT
        * REPLACE (
            CASE WHEN paired THEN target_false
            ELSE coalesce(target_false, max(target_false) FILTER (paired) OVER (PARTITION BY fact_id)) END
            AS target_false
        ),
        {'subjects': coalesce(counterfactual_subject, []), 'prompts': coalesce(counterfactual_prompt, [])} AS others
    FROM every
)
SELECT 'facts under the fact_id' AS what, fact_id AS name, list_sort(list_distinct(list(store))) AS stores
FROM filled
GROUP BY fact_id
HAVING count(DISTINCT {
    'prompt': prompt, 'subject': subject, 'target_true': target_true, 'target_false': target_false,
    'paraphrases': paraphrases, 'neighborhood': neighborhood, 'target_prefix': target_prefix
}) > 1
UNION ALL
SELECT 'counterfactuals of the fact', fact_id, list_sort(list_distinct(list(store)))
FROM filled
WHERE paired
GROUP BY fact_id
HAVING count(DISTINCT others) > 1
UNION ALL
SELECT 'runs under the run_id', run_id, list_sort(list_distinct(list(store)))
FROM main.runs
GROUP BY run_id
HAVING count(DISTINCT {
    'kind': kind, 'model_hash': model_hash, 'dtype': dtype, 'seed': seed, 'protocol': protocol,
    'settings': settings, 'fasttrace_version': fasttrace_version
}) > 1
ORDER BY ALL
LIMIT 1;
