-- layer_correlation: Pearson's correlation of tracing effect and score at each edited layer (paper, Figure 15).
-- Grain: one row per group of layer_sums and layer. Inputs: layer_sums.
-- Units: n = edits used; rho in [-1, 1], NULL where the effect or the score does not vary within the layer.
SELECT
    problem, method, protocol, model, module, localization, metric, tokens, window_size, edit_run, trace_run,
    edit_run_id, trace_run_id, source, score, effect_at, subset, layers, layer, n, n_rows - n AS n_left_out,
    CASE
        WHEN has_slope AND sqrt(s_yy / n) > 1e-12 * greatest(abs(min_y), abs(max_y))
            THEN greatest(-1, least(1, s_xy / sqrt(s_xx * s_yy)))
    END AS rho
FROM layer_sums;
