-- one_fact_traces: what a run has of one fact, to be added again under another name.
-- Grain: as traces, less run_id and protocol. Parameter: run_id. Inputs: traces. Units: as there.
SELECT * EXCLUDE (run_id, protocol)
FROM traces
WHERE run_id = $run_id AND fact_id = 'made/000000';
