-- Adds prompts of facts and numbers of edits that this run has not scored. It runs before add_mass_edits.
INSERT INTO mass_prompts BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_mass_prompts AS batch
WHERE NOT EXISTS (
    FROM mass_edits
    WHERE mass_edits.run_id = $run_id AND mass_edits.n_edits = batch.n_edits AND mass_edits.fact_id = batch.fact_id
);
