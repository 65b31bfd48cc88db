-- duplicate_prompts: scored prompts that are there more than once; the relation has no index that would refuse them.
-- Grain: one row a key at fault. Inputs: edit_prompts. Units: n = rows with that key.
SELECT run_id, fact_id, problem, method, layer, kind, prompt_index, count(*) AS n
FROM edit_prompts
GROUP BY ALL
HAVING count(*) > 1;
