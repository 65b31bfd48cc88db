-- duplicate_prompts: scored prompts that are stored more than once. No index of the relations prevents this.
-- Grain: one row per duplicated key. Inputs: edit_prompts, mass_prompts.
-- Units: n = rows with that key; n_edits = edits in the model, NULL for an edit by itself.
SELECT run_id, fact_id, problem, method, layer, NULL AS n_edits, kind, prompt_index, count(*) AS n
FROM edit_prompts
GROUP BY ALL
HAVING count(*) > 1
UNION ALL
SELECT run_id, fact_id, NULL, NULL, NULL, n_edits, kind, prompt_index, count(*)
FROM mass_prompts
GROUP BY ALL
HAVING count(*) > 1;
