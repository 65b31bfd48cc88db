-- effects_off: cells whose effect does not follow from their metric (paper, section 4.1 and Appendix B; for metrics
-- other than the probability Zhang and Nanda 2023).
-- Grain: one row per wrong cell. Inputs: measured_cells, trace_cells.
-- Units: m_* as in measured_cells; effect = stored fraction; expected = correct fraction. For the probability it is the
-- restored share of m_clean - m_noised (protocol released: at least 0, with the grid's largest p_restored in place of
-- m_clean where it is larger, and the absolute value of the difference), the lost share of m_clean - m_noised (method
-- noise) or the lost share of m_clean (method zero). It is NULL where there is nothing to restore or lose. For another
-- metric it is the same share under both protocols, NULL where the difference is about 0.
WITH
largest AS (  -- a grid is one window size
    SELECT run_id, fact_id, window_size, max(p_restored) AS p_max
    FROM trace_cells
    WHERE protocol = 'released'
    GROUP BY ALL
),
found AS (
    SELECT
        cell.run_id, cell.fact_id, cell.window_size, cell.token_index, cell.layer, cell.head, cell.metric, cell.effect,
        cell.m, cell.m_clean, cell.m_noised,
        CASE WHEN cell.method = 'zero' THEN 0 ELSE cell.m_noised END AS m_least,
        CASE
            WHEN cell.metric <> 'probability'
                THEN CASE
                    WHEN abs(m_clean - m_least) > 1e-6 * greatest(1, abs(m_clean), abs(m_least))
                        THEN CASE WHEN cell.method IN ('noise', 'zero') THEN m_clean - m ELSE m - m_least END
                            / (m_clean - m_least)
                END
            WHEN cell.method = 'zero'
                THEN CASE WHEN m_clean > 0 THEN (m_clean - m) / m_clean END
            WHEN m_noised >= m_clean
                AND (cell.protocol = 'paper' OR cell.method = 'noise' OR cell.effect IS NULL)  -- NULL before 0.2.0
                THEN NULL
            WHEN cell.method = 'noise'
                THEN (m_clean - m) / (m_clean - m_noised)
            WHEN cell.protocol = 'paper'
                THEN (m - m_noised) / (m_clean - m_noised)
            WHEN greatest(m_clean, largest.p_max) <> m_noised
                THEN greatest(0, (m - m_noised) / abs(greatest(m_clean, largest.p_max) - m_noised))
        END AS expected
    FROM measured_cells AS cell
    LEFT JOIN largest
        ON largest.run_id = cell.run_id
        AND largest.fact_id = cell.fact_id
        AND largest.window_size = cell.window_size
)
SELECT * EXCLUDE (m_least)
FROM found
WHERE (effect IS NULL) <> (expected IS NULL) OR abs(effect - expected) > 1e-9 * greatest(1, abs(expected));
