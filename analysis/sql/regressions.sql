-- regressions: how much of a score the edited layer explains, the tracing effect, and both (paper, Tables 1 and 3).
-- Grain: one row a group (problem, method, protocol, model, module, localization, window_size, edit_run_id,
-- trace_run_id, score, effect_at). Inputs: layer_sums, group_counts.
-- Models, by least squares: layer: y ~ C(layer); effect: y ~ x; both: y ~ C(layer) * x, one straight line a layer.
-- A layer whose x does not differ (one fact, say) has a mean and no slope, as the rank of the design says.
-- A rest below 1e-13 of what it is a rest of is rounding, and counts as 0.
-- Units: r2_* = share of the variance of the score, NULL where the score does not vary; diff = r2_both - r2_layer;
-- f_value with df_num and df_den tests both against layer, NULL where no degree of freedom is left or
-- 1 - r2_both < 1e-12 (its relative error is about 1e-16 / (1 - r2_both)); rmse_* in units of the score;
-- rho = Pearson's correlation of x and y over all layers.
CREATE OR REPLACE TEMP VIEW regressions AS
WITH
centred AS (
    SELECT
        *,
        sum(n * mean_x) OVER grp / (sum(n) OVER grp)::DOUBLE AS grand_x,
        sum(n * mean_y) OVER grp / (sum(n) OVER grp)::DOUBLE AS grand_y,
        CASE WHEN has_slope THEN s_xy * s_xy / s_xx ELSE 0 END AS explained,
        CASE WHEN s_yy - explained > 1e-13 * s_yy THEN s_yy - explained ELSE 0 END AS left_line
    FROM layer_sums
    WHERE n > 0
    WINDOW grp AS (
        PARTITION BY edit_run_id, trace_run_id, problem, method, window_size, score, effect_at
    )
),
sums AS (
    SELECT
        edit_run_id, trace_run_id, problem, method, window_size, score, effect_at,
        sum(n)::BIGINT AS rows_used,
        count(*) AS n_layers,
        count(*) FILTER (WHERE has_slope) AS n_slopes,
        sum(s_xx + n * (mean_x - grand_x) ** 2) AS total_xx,
        sum(s_xy + n * (mean_x - grand_x) * (mean_y - grand_y)) AS total_xy,
        sum(s_yy + n * (mean_y - grand_y) ** 2) AS total_yy,
        sum(s_yy) AS left_layer,
        sum(explained) AS explained,
        sum(left_line) AS left_both,
        sqrt(total_xx / rows_used) > 1e-12 * greatest(abs(min(min_x)), abs(max(max_x))) AS x_varies,
        sqrt(total_yy / rows_used) > 1e-12 * greatest(abs(min(min_y)), abs(max(max_y))) AS y_varies
    FROM centred
    GROUP BY edit_run_id, trace_run_id, problem, method, window_size, score, effect_at
),
fits AS (
    SELECT
        *,
        CASE WHEN x_varies THEN total_xy * total_xy / total_xx ELSE 0 END AS explained_effect,
        CASE
            WHEN total_yy - explained_effect > 1e-13 * total_yy THEN total_yy - explained_effect
            ELSE 0
        END AS left_effect,
        rows_used - n_layers - n_slopes AS df_both
    FROM sums
),
groups AS (
    SELECT DISTINCT
        problem, method, protocol, model, module, localization, window_size, edit_run_id, trace_run_id, score,
        effect_at
    FROM layer_sums
)
SELECT
    groups.*,
    counts.n,
    counts.n_facts,
    counts.n_left_out,
    counts.n_facts_left_out,
    CASE WHEN y_varies THEN greatest(1 - left_layer / total_yy, 0) END AS r2_layer,
    CASE WHEN y_varies THEN explained_effect / total_yy END AS r2_effect,
    CASE WHEN y_varies THEN greatest(1 - left_both / total_yy, 0) END AS r2_both,
    CASE WHEN y_varies THEN explained / total_yy END AS diff,
    CASE
        WHEN y_varies AND n_slopes > 0 AND df_both > 0 AND left_both > 1e-12 * total_yy
            THEN (explained / n_slopes) / (left_both / df_both)
    END AS f_value,
    n_slopes AS df_num,
    df_both AS df_den,
    sqrt(left_layer / rows_used) AS rmse_layer,
    sqrt(left_effect / rows_used) AS rmse_effect,
    sqrt(left_both / rows_used) AS rmse_both,
    CASE WHEN x_varies AND y_varies THEN total_xy / sqrt(total_xx * total_yy) END AS rho
FROM groups
JOIN group_counts AS counts
    ON counts.edit_run_id = groups.edit_run_id
    AND counts.trace_run_id IS NOT DISTINCT FROM groups.trace_run_id
    AND counts.problem = groups.problem
    AND counts.method = groups.method
    AND counts.window_size = groups.window_size
    AND counts.score = groups.score
    AND counts.effect_at = groups.effect_at
LEFT JOIN fits
    ON fits.edit_run_id = groups.edit_run_id
    AND fits.trace_run_id IS NOT DISTINCT FROM groups.trace_run_id
    AND fits.problem = groups.problem
    AND fits.method = groups.method
    AND fits.window_size = groups.window_size
    AND fits.score = groups.score
    AND fits.effect_at = groups.effect_at;
