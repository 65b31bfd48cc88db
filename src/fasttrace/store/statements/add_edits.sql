INSERT INTO edits BY NAME
SELECT $run_id AS run_id, $protocol AS protocol, batch.*
FROM batch_edits AS batch
WHERE NOT EXISTS (
    FROM edits
    WHERE edits.run_id = $run_id AND edits.fact_id = batch.fact_id AND edits.layer = batch.layer
      AND edits.problem = batch.problem AND edits.method = batch.method
);
