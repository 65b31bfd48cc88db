-- samples_off: cells whose p_restored or logit_diff_restored is not the mean of their stored samples.
-- Grain: one row per wrong cell. Inputs: trace_samples, trace_cells. Units: p_mean, logit_diff_mean = means over the n
-- samples, a probability and a difference of logits, which is NULL where the fact has none.
WITH means AS (
    SELECT
        run_id, fact_id, window_size, token_index, layer, head,
        avg(p_restored) AS p_mean,
        avg(logit_diff_restored) AS logit_diff_mean,
        count(*) AS n
    FROM trace_samples
    GROUP BY ALL
)
SELECT means.*, cell.p_restored, cell.logit_diff_restored
FROM means
LEFT JOIN trace_cells AS cell
    ON cell.run_id = means.run_id
    AND cell.fact_id = means.fact_id
    AND cell.window_size = means.window_size
    AND cell.token_index = means.token_index
    AND cell.layer = means.layer
    AND cell.head IS NOT DISTINCT FROM means.head
WHERE cell.p_restored IS NULL
   OR abs(cell.p_restored - means.p_mean) > 1e-9
   OR (cell.logit_diff_restored IS NULL) <> (means.logit_diff_mean IS NULL)
   OR abs(cell.logit_diff_restored - means.logit_diff_mean) > 1e-9 * greatest(1, abs(cell.logit_diff_restored));
