-- duplicate_effects: effects that are there more than once; the relation has no index that would refuse them.
-- Grain: one row a key at fault. Inputs: trace_effects. Units: n = rows with that key.
SELECT run_id, fact_id, window_size, layer, count(*) AS n
FROM trace_effects
GROUP BY ALL
HAVING count(*) > 1;
