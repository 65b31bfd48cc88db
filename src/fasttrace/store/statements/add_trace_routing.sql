-- Adds routing of facts that this run has not finished. It runs before add_traces, which marks them as finished.
INSERT INTO trace_routing BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_trace_routing AS batch
WHERE NOT EXISTS (FROM traces WHERE traces.run_id = $run_id AND traces.fact_id = batch.fact_id);
