-- effects_off: cells whose effect does not follow from their probabilities (paper, section 4.1 and Appendix B).
-- Grain: one row per wrong cell. Inputs: trace_cells, traces, trace_settings.
-- Units: p_* are probabilities; effect = stored fraction; expected = correct fraction. It is the restored share of
-- p_clean - p_noised (protocol released: at least 0, with the grid's largest p_restored in place of p_clean where it
-- is larger, and the absolute value of the difference), the lost share of p_clean - p_noised (method noise) or the lost
-- share of p_clean (method zero). It is NULL where there is nothing to restore or lose.
WITH
largest AS (  -- a grid is one window size
    SELECT run_id, fact_id, window_size, max(p_restored) AS p_max
    FROM trace_cells
    WHERE protocol = 'released'
    GROUP BY ALL
),
found AS (
    SELECT
        cell.run_id, cell.fact_id, cell.window_size, cell.token_index, cell.layer, cell.effect, cell.p_restored,
        trace.p_clean, trace.p_noised,
        CASE
            WHEN asked.method = 'zero'
                THEN CASE WHEN trace.p_clean > 0 THEN (trace.p_clean - cell.p_restored) / trace.p_clean END
            WHEN trace.p_noised >= trace.p_clean
                AND (cell.protocol = 'paper' OR asked.method = 'noise' OR cell.effect IS NULL)  -- NULL before 0.2.0
                THEN NULL
            WHEN asked.method = 'noise'
                THEN (trace.p_clean - cell.p_restored) / (trace.p_clean - trace.p_noised)
            WHEN cell.protocol = 'paper'
                THEN (cell.p_restored - trace.p_noised) / (trace.p_clean - trace.p_noised)
            WHEN greatest(trace.p_clean, largest.p_max) <> trace.p_noised
                THEN greatest(
                    0,
                    (cell.p_restored - trace.p_noised)
                    / abs(greatest(trace.p_clean, largest.p_max) - trace.p_noised)
                )
        END AS expected
    FROM trace_cells AS cell
    JOIN trace_settings AS asked ON asked.run_id = cell.run_id
    JOIN traces AS trace ON trace.run_id = cell.run_id AND trace.fact_id = cell.fact_id
    LEFT JOIN largest
        ON largest.run_id = cell.run_id
        AND largest.fact_id = cell.fact_id
        AND largest.window_size = cell.window_size
)
SELECT *
FROM found
WHERE (effect IS NULL) <> (expected IS NULL) OR abs(effect - expected) > 1e-9 * greatest(1, abs(expected));
