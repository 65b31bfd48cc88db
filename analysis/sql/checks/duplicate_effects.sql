-- duplicate_effects: effects that are stored more than once. No index of the relation prevents this.
-- Grain: one row per duplicated key. Inputs: trace_effects. Units: n = rows with that key.
SELECT run_id, fact_id, window_size, layer, count(*) AS n
FROM trace_effects
GROUP BY ALL
HAVING count(*) > 1;
