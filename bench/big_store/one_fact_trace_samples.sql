-- one_fact_trace_samples: what a run has of one fact, to be added again under another name.
-- Grain: as trace_samples, less run_id and protocol. Parameter: run_id. Inputs: trace_samples. Units: as there.
SELECT * EXCLUDE (run_id, protocol)
FROM trace_samples
WHERE run_id = $run_id AND fact_id = 'made/000000';
