-- one_fact_trace_routing: what a run has of one fact, to be added again under another name.
-- Grain: as trace_routing, less run_id and protocol. Parameter: run_id. Inputs: trace_routing. Units: as there.
SELECT * EXCLUDE (run_id, protocol)
FROM trace_routing
WHERE run_id = $run_id AND fact_id = 'made/000000';
