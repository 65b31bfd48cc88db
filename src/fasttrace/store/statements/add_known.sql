INSERT INTO known BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_known AS batch
WHERE NOT EXISTS (FROM known WHERE known.run_id = $run_id AND known.fact_id = batch.fact_id);
