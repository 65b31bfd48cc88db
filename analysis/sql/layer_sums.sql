-- layer_sums: counts, means and sums of squares of each layer, from which the regressions are computed.
-- Grain: one row per group (pair, source, score, effect_at, subset, layers) and
-- layer. The pair determines problem, method,
-- protocol, model, module, localization, metric, tokens, window_size and the runs.
-- Inputs: regression_rows, run_pairs.
-- Units: n_rows = all rows; n = rows with both numbers, which alone enter the sums; n_below_0 = rows
-- used whose score is below 0; n_outside = rows used whose effect is below 0 or above 1; s_xx, s_xy, s_yy = sums of
-- squares and products about the layer's own means, accumulated about a running mean to avoid cancellation. With n,
-- mean_x and mean_y they are equivalent to the plain sums of x, y, xx, xy, yy. has_slope = x varies within the layer
-- by more than rounding.
WITH sums AS (  -- grouped only by numbers and short texts, which is fast
    SELECT
        pair, source, score, effect_at, subset, layers, layer,
        count(*) AS n_rows,
        count(*) FILTER (WHERE used) AS n,
        count(*) FILTER (WHERE used AND y < 0) AS n_below_0,
        count(*) FILTER (WHERE used AND (x < 0 OR x > 1)) AS n_outside,
        avg(x) FILTER (WHERE used) AS mean_x,
        avg(y) FILTER (WHERE used) AS mean_y,
        min(x) FILTER (WHERE used) AS min_x,
        max(x) FILTER (WHERE used) AS max_x,
        min(y) FILTER (WHERE used) AS min_y,
        max(y) FILTER (WHERE used) AS max_y,
        coalesce(regr_sxx(y, x) FILTER (WHERE used), 0) AS s_xx,
        coalesce(regr_sxy(y, x) FILTER (WHERE used), 0) AS s_xy,
        coalesce(regr_syy(y, x) FILTER (WHERE used), 0) AS s_yy
    FROM regression_rows
    GROUP BY ALL
)
SELECT
    pair.problem, pair.method, pair.protocol, pair.model, pair.module, pair.localization, pair.metric,
    pair.tokens, pair.window_size, pair.edit_run, pair.trace_run, pair.edit_run_id, pair.trace_run_id,
    sums.*,
    coalesce(sqrt(s_xx / nullif(n, 0)) > 1e-12 * greatest(abs(min_x), abs(max_x)), FALSE) AS has_slope
FROM sums
JOIN run_pairs AS pair ON pair.pair = sums.pair;
