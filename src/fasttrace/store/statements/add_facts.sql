INSERT INTO facts BY NAME
SELECT batch.*
FROM batch_facts AS batch
WHERE NOT EXISTS (FROM facts WHERE facts.fact_id = batch.fact_id);
