-- An id that stands for different things in several stores: what it names, the id, and its stores. At most one row.
SELECT 'facts under the fact_id' AS what, fact_id AS name, list_sort(list_distinct(list(store))) AS stores
FROM main.facts
GROUP BY fact_id
HAVING count(DISTINCT {
    'prompt': prompt, 'subject': subject, 'target_true': target_true, 'target_false': target_false,
    'paraphrases': paraphrases, 'neighborhood': neighborhood, 'target_prefix': target_prefix
}) > 1 OR count(DISTINCT {'probes': probes, 'case_id': case_id, 'case_edits': case_edits}) FILTER (probes IS NOT NULL) > 1
UNION ALL
SELECT 'counterfactuals in the run', run_id, list_sort(list_distinct(list(store)))
FROM main.traces
GROUP BY run_id, fact_id
HAVING count(DISTINCT list_sort(counterfactuals)) > 1 OR count(DISTINCT coalesce(target_false, '')) > 1
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
