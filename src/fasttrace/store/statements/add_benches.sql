INSERT INTO benches BY NAME
SELECT $run_id AS run_id, batch.*
FROM batch_benches AS batch
WHERE NOT EXISTS (
    FROM benches
    WHERE benches.run_id = $run_id AND benches.benchmark = batch.benchmark AND benches."case" = batch."case"
      AND benches.impl = batch.impl AND benches.metric = batch.metric
);
