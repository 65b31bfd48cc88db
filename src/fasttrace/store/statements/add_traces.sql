INSERT INTO traces BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_traces AS batch
WHERE NOT EXISTS (FROM traces WHERE traces.run_id = $run_id AND traces.fact_id = batch.fact_id);
