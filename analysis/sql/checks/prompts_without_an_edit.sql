-- prompts_without_an_edit: scored prompts of an edit that is not there.
-- Grain: one row a prompt at fault. Inputs: edit_prompts, edits. Units: none.
SELECT run_id, fact_id, problem, method, layer, kind, prompt_index
FROM edit_prompts
ANTI JOIN edits USING (run_id, fact_id, problem, method, layer);
