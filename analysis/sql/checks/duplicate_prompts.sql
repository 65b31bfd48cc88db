-- duplicate_prompts: scored prompts that are stored more than once. No index of the relation prevents this.
-- Grain: one row per duplicated key. Inputs: edit_prompts. Units: n = rows with that key.
SELECT run_id, fact_id, problem, method, layer, kind, prompt_index, count(*) AS n
FROM edit_prompts
GROUP BY ALL
HAVING count(*) > 1;
