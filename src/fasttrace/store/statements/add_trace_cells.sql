-- Cells of facts this run has not finished; before add_traces, which marks them finished.
INSERT INTO trace_cells BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_trace_cells AS batch
WHERE NOT EXISTS (FROM traces WHERE traces.run_id = $run_id AND traces.fact_id = batch.fact_id);
