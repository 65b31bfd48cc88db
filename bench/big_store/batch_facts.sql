-- batch_facts: made-up facts, every fifth of them from zsRE.
-- Grain: one row a fact. Parameter: n_facts. Inputs: none. Units: as in the store's facts.
CREATE OR REPLACE TEMP TABLE batch_facts AS
SELECT
    printf('made/%06d', i) AS fact_id,
    CASE WHEN i % 5 = 0 THEN 'zsre' ELSE 'counterfact' END AS source,
    'city' AS relation,
    'The {} is located in the city of' AS prompt,
    printf('Building %d', i) AS subject,
    'Paris' AS target_true,
    'Rome' AS target_false,
    []::VARCHAR[] AS paraphrases,
    []::VARCHAR[] AS neighborhood
FROM range($n_facts) AS made (i)
ORDER BY i;
