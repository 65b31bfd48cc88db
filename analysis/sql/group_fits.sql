-- group_fits: the three least-squares fits of every group, computed from the sums of its layers.
-- Grain: one row per group of layer_sums.
-- Inputs: layer_sums.
-- Models: layer: y ~ C(layer); effect: y ~ x; both: y ~ C(layer) * x, one straight line per layer.
-- A layer whose x does not vary, such as a layer with one fact, has a mean but no slope: the rank of the design is one
-- lower.
-- Residuals below 1e-13 of the total count as zero.
-- Units: n_below_0, n_outside as in layer_sums; effect_min, effect_max = range of the effects used; n = rows used; n_left_out = rows without an effect or a score; n_layers and n_slopes = numbers of means and
-- of slopes in "both"; grand_x, grand_y = means over all rows; total_* = sums of squares and products about these
-- means; left_* = residual sums of squares of the models; explained = left_layer - left_both; slope = slope of the
-- model "effect".
WITH
centred AS (
    SELECT
        *,
        sum(n * mean_x) OVER grp / (sum(n) OVER grp)::DOUBLE AS grand_x,
        sum(n * mean_y) OVER grp / (sum(n) OVER grp)::DOUBLE AS grand_y,
        CASE WHEN has_slope THEN s_xy * s_xy / s_xx ELSE 0 END AS explained,
        CASE WHEN s_yy - explained > 1e-13 * s_yy THEN s_yy - explained ELSE 0 END AS left_line
    FROM layer_sums
    WINDOW grp AS (
        PARTITION BY pair, source, score, effect_at, subset, layers
    )
),
sums AS (
    SELECT
        problem, method, protocol, model, module, localization, metric, tokens, window_size, edit_run, trace_run,
        edit_run_id, trace_run_id, pair, source, score, effect_at, subset, layers,
        sum(n)::BIGINT AS rows_used,
        sum(n_rows - n)::BIGINT AS n_left_out,
        sum(n_below_0)::BIGINT AS n_below_0,
        sum(n_outside)::BIGINT AS n_outside,
        min(min_x) AS effect_min,
        max(max_x) AS effect_max,
        count(*) FILTER (WHERE n > 0) AS n_layers,
        count(*) FILTER (WHERE has_slope) AS n_slopes,
        any_value(grand_x) AS grand_x,
        any_value(grand_y) AS grand_y,
        sum(s_xx + n * (mean_x - grand_x) ** 2) AS total_xx,
        sum(s_xy + n * (mean_x - grand_x) * (mean_y - grand_y)) AS total_xy,
        sum(s_yy + n * (mean_y - grand_y) ** 2) AS total_yy,
        sum(s_yy) AS left_layer,
        sum(explained) AS explained,
        sum(left_line) AS left_both,
        sqrt(total_xx / rows_used) > 1e-12 * greatest(abs(min(min_x)), abs(max(max_x))) AS x_varies,
        sqrt(total_yy / rows_used) > 1e-12 * greatest(abs(min(min_y)), abs(max(max_y))) AS y_varies
    FROM centred
    GROUP BY ALL
)
SELECT
    * RENAME (rows_used AS n),
    CASE WHEN x_varies THEN total_xy / total_xx ELSE 0 END AS slope,
    slope * CASE WHEN x_varies THEN total_xy ELSE 0 END AS explained_effect,
    CASE
        WHEN total_yy - explained_effect > 1e-13 * total_yy THEN total_yy - explained_effect
        ELSE 0
    END AS left_effect,
    rows_used - n_layers - n_slopes AS df_both
FROM sums;
