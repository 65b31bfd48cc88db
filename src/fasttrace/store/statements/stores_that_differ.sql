-- An id that stands for different things in several stores: what it names, the id, and its stores. A fact without
-- counterfactuals is the same fact. At most one row.
WITH with_counterfactuals AS (
    SELECT
        *, {'subjects': coalesce(counterfactual_subject, []), 'prompts': coalesce(counterfactual_prompt, [])} AS others
    FROM main.facts
    WHERE coalesce(len(counterfactual_subject), 0) + coalesce(len(counterfactual_prompt), 0) > 0
)
SELECT 'facts under the fact_id' AS what, fact_id AS name, list_sort(list_distinct(list(store))) AS stores
FROM main.facts
GROUP BY fact_id
HAVING count(DISTINCT {
    'prompt': prompt, 'subject': subject, 'target_true': target_true, 'target_false': target_false,
    'paraphrases': paraphrases, 'neighborhood': neighborhood, 'target_prefix': target_prefix
}) > 1
UNION ALL
SELECT 'counterfactuals of the fact', fact_id, list_sort(list_distinct(list(store)))
FROM with_counterfactuals
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
