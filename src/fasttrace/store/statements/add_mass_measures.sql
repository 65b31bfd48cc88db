INSERT INTO mass_measures BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_mass_measures AS batch
WHERE NOT EXISTS (
    FROM mass_measures AS stored
    WHERE stored.run_id = $run_id AND stored.model_index = batch.model_index AND stored.n_edits = batch.n_edits
);
