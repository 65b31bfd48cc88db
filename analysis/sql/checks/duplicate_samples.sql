-- duplicate_samples: samples that are stored more than once. No index of the relation prevents this.
-- Grain: one row per duplicated key. Inputs: trace_samples. Units: n = rows with that key.
SELECT run_id, fact_id, window_size, token_index, layer, head, sample, count(*) AS n
FROM trace_samples
GROUP BY ALL
HAVING count(*) > 1;
