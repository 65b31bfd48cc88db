-- samples_off: cells whose p_restored is not the mean of their stored noise samples.
-- Grain: one row per wrong cell. Inputs: trace_samples, trace_cells. Units: p_mean = mean over the n samples, a
-- probability.
WITH means AS (
    SELECT run_id, fact_id, window_size, token_index, layer, avg(p_restored) AS p_mean, count(*) AS n
    FROM trace_samples
    GROUP BY ALL
)
SELECT means.*, cell.p_restored
FROM means
LEFT JOIN trace_cells AS cell USING (run_id, fact_id, window_size, token_index, layer)
WHERE cell.p_restored IS NULL OR abs(cell.p_restored - means.p_mean) > 1e-9;
