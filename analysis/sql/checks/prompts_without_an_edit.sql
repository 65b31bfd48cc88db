-- prompts_without_an_edit: scored prompts of an edit that the store lacks.
-- Grain: one row per wrong prompt. Inputs: edit_prompts, edits, mass_prompts, mass_edits.
-- Units: n_edits = edits in the model, NULL for an edit by itself; layer is NULL for a mass edit.
SELECT run_id, fact_id, layer, NULL AS n_edits, kind, prompt_index
FROM edit_prompts
ANTI JOIN edits USING (run_id, fact_id, problem, method, layer)
UNION ALL
SELECT run_id, fact_id, NULL, n_edits, kind, prompt_index
FROM mass_prompts
ANTI JOIN mass_edits USING (run_id, fact_id, n_edits);
