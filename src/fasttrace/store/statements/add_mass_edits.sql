INSERT INTO mass_edits BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_mass_edits AS batch
WHERE NOT EXISTS (
    FROM mass_edits
    WHERE mass_edits.run_id = $run_id AND mass_edits.n_edits = batch.n_edits AND mass_edits.fact_id = batch.fact_id
);
