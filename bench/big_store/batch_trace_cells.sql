-- batch_trace_cells: the grids of the batch's facts: an early site at the last subject token and a late one at the last.
-- Grain: one row a (fact, window size, token, layer). Parameter: n_layers.
-- Inputs: batch_traces. Units: as in the store's trace_cells.
CREATE OR REPLACE TEMP TABLE batch_trace_cells AS
WITH grid AS (
    SELECT
        trace.fact_id,
        trace.p_clean,
        trace.p_noised,
        trace.tokens,
        size.window_size,
        token.i AS token_index,
        layer.i AS layer,
        CASE token.i WHEN trace.subject_end - 1 THEN 0.5 WHEN len(trace.tokens) - 1 THEN 0.3 ELSE 0.04 END AS height,
        CASE token.i WHEN len(trace.tokens) - 1 THEN 0.8 ELSE 0.1 + 0.3 * (hash(trace.fact_id) % 1009) / 1009 END AS centre,
        0.04 + 0.1 * (hash(trace.fact_id, 5) % 1013) / 1013 AS width,
        0.8 + 0.4 * (hash(trace.fact_id, size.window_size, token.i, layer.i) % 1000003) / 1000003 AS wobble
    FROM batch_traces AS trace
    CROSS JOIN (VALUES (1), (3), (5), (10)) AS size (window_size)
    CROSS JOIN range(len(trace.tokens)) AS token (i)
    CROSS JOIN range($n_layers) AS layer (i)
),
restored AS (
    SELECT *, height * sqrt(window_size / 10) * exp(-(((layer / $n_layers - centre) / width) ** 2)) * wobble AS share
    FROM grid
)
SELECT
    fact_id,
    window_size,
    token_index,
    tokens[token_index + 1] AS token,
    layer,
    p_noised + share * (p_clean - p_noised) AS p_restored,
    0.1 * p_restored * (1 - p_restored) AS p_restored_sem,
    CASE WHEN p_noised < p_clean THEN (p_restored - p_noised) / (p_clean - p_noised) END AS effect,
    FALSE AS approximate,
    NULL::DOUBLE AS p_screened
FROM restored
ORDER BY fact_id, window_size, token_index, layer;
