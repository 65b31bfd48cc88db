-- one_fact_trace_cells: what a run has of one fact, to be added again under another name.
-- Grain: as trace_cells, less run_id and protocol. Parameter: run_id. Inputs: trace_cells. Units: as there.
SELECT * EXCLUDE (run_id, protocol)
FROM trace_cells
WHERE run_id = $run_id AND fact_id = 'made/000000';
