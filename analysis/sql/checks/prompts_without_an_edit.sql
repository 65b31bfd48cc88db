-- prompts_without_an_edit: scored prompts of an edit that the store lacks.
-- Grain: one row per wrong prompt. Inputs: edit_prompts, edits. Units: none.
SELECT run_id, fact_id, problem, method, layer, kind, prompt_index
FROM edit_prompts
ANTI JOIN edits USING (run_id, fact_id, problem, method, layer);
