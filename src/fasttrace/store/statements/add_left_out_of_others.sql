-- Adds what another store says of sources of which this one says nothing.
INSERT INTO facts_left_out BY NAME
SELECT batch.*
FROM batch_left_out AS batch
WHERE NOT EXISTS (FROM facts_left_out WHERE facts_left_out.source = batch.source);
