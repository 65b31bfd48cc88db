-- Adds prompts of edits that this run has not finished. It runs before add_edits, which marks them as finished.
INSERT INTO edit_prompts BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_edit_prompts AS batch
WHERE NOT EXISTS (
    FROM edits
    WHERE edits.run_id = $run_id AND edits.fact_id = batch.fact_id AND edits.layer = batch.layer
      AND edits.problem = batch.problem AND edits.method = batch.method
);
