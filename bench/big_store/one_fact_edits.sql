-- one_fact_edits: what a run has of one fact, to be added again under another name.
-- Grain: as edits, less run_id and protocol. Parameter: run_id. Inputs: edits. Units: as there.
SELECT * EXCLUDE (run_id, protocol)
FROM edits
WHERE run_id = $run_id AND fact_id = 'made/000000';
