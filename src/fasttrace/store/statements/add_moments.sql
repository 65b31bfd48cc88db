INSERT INTO moments BY NAME
SELECT $run_id AS run_id, batch.*
FROM batch_moments AS batch
WHERE NOT EXISTS (FROM moments WHERE moments.run_id = $run_id);
