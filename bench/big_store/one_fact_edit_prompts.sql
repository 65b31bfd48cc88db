-- one_fact_edit_prompts: what a run has of one fact, to be added again under another name.
-- Grain: as edit_prompts, less run_id and protocol. Parameter: run_id. Inputs: edit_prompts. Units: as there.
SELECT * EXCLUDE (run_id, protocol)
FROM edit_prompts
WHERE run_id = $run_id AND fact_id = 'made/000000';
