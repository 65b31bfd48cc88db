-- batch_edits: one made-up editing run, whose scores fall with the layer; one in 211 has no rewrite score.
-- Grain: one row a (fact, layer). Parameters: problem, method, n_facts, layers (list).
-- Inputs: none. Units: as in the store's edits.
CREATE OR REPLACE TEMP TABLE batch_edits AS
WITH grid AS (
    SELECT
        printf('made/%06d', fact.i) AS fact_id,
        layer.i AS layer,
        hash(fact.i, layer.i, $problem, $method) AS chance
    FROM range($n_facts) AS fact (i)
    CROSS JOIN (SELECT unnest($layers)) AS layer (i)
)
SELECT
    fact_id,
    $problem AS problem,
    $method AS method,
    layer,
    5 AS window_size,
    CASE
        WHEN chance % 211 > 0
            THEN least(1, greatest(0, 1 - layer / 40 + 0.5 * (chance % 1000003) / 1000003))
    END AS rewrite,
    rewrite * (0.5 + 0.5 * (chance % 1009) / 1009) AS paraphrase,
    0.7 + 0.3 * (chance % 1013) / 1013 AS neighborhood,
    NULL::DOUBLE AS essence,
    (rewrite + paraphrase + neighborhood) / 3 AS overall,
    0.01 AS p_before,
    0.01 + 0.99 * rewrite AS p_after,
    0.6 AS p_true_before,
    0.5 * (1 - p_after) AS p_true_after,
    p_after - p_true_after AS magnitude,
    p_after > p_true_after AS success,
    NULL::DOUBLE AS ppl_before,
    NULL::DOUBLE AS ppl_after,
    1.3 AS delta_norm,
    0.8 AS denominator,
    NULL::DOUBLE AS condition,
    0.1 AS loss,
    'Rome' AS target,
    NULL::VARCHAR AS reason
FROM grid
ORDER BY fact_id, layer;
