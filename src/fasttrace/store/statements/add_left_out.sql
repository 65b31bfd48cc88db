INSERT INTO facts_left_out BY NAME
SELECT DISTINCT $source AS source, batch.*
FROM batch_left_out AS batch;
