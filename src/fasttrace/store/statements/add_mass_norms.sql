INSERT INTO mass_norms BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_mass_norms AS batch
WHERE NOT EXISTS (
    FROM mass_norms AS stored
    WHERE stored.run_id = $run_id AND stored.model_index = batch.model_index AND stored.n_edits = batch.n_edits
        AND stored.layer = batch.layer
);
