INSERT INTO mass_tasks BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_mass_tasks AS batch
WHERE NOT EXISTS (
    FROM mass_tasks AS stored
    WHERE stored.run_id = $run_id AND stored.model_index = batch.model_index AND stored.n_edits = batch.n_edits
        AND stored.task = batch.task AND stored.metric = batch.metric
);
