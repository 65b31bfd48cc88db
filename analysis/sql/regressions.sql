-- regressions: how much of a score is explained by the edited layer, by the tracing effect and by both (paper, Tables
-- 1 to 8).
-- Grain: one row per group of layer_sums.
-- Inputs: group_fits, layer_sums, regression_rows.
-- Models: as in group_fits. A second pass over the rows counts facts and sums absolute errors.
-- Units: n, n_left_out, n_layers, n_below_0, n_outside, effect_min, effect_max as in group_fits; n_facts = facts with a row used; n_facts_left_out = facts without one; r2_*
-- = share of the variance of the score, NULL where the score does not vary; diff = r2_both - r2_layer; f_value, with
-- df_num and df_den degrees of freedom, tests both against layer. It is NULL where r2_both is NULL, no layer has a
-- slope, no degree of freedom is left, or 1 - r2_both < 1e-12, where its relative error, about 1e-16 / (1 - r2_both),
-- is large. rmse_* and mae_* = root mean square and mean absolute errors in units of the score; rho = Pearson's
-- correlation of x and y over all layers.
WITH
lines AS NOT MATERIALIZED (  -- the models' means and slopes at each layer
    SELECT
        layer.*,
        CASE WHEN has_slope THEN s_xy / s_xx ELSE 0 END AS layer_slope,
        fit.grand_x,
        fit.grand_y,
        fit.slope
    FROM layer_sums AS layer
    JOIN group_fits AS fit
        ON fit.pair = layer.pair
        AND fit.source IS NOT DISTINCT FROM layer.source
        AND fit.score = layer.score
        AND fit.effect_at = layer.effect_at
        AND fit.subset = layer.subset
        AND fit.layers = layer.layers
),
fact_errors AS NOT MATERIALIZED (
    SELECT
        edit.pair, edit.source, edit.score, edit.effect_at, edit.subset, edit.layers, edit.fact_id,
        count(*) FILTER (WHERE used) AS n,
        sum(abs(y - mean_y)) FILTER (WHERE used) AS layer_error,
        sum(abs(y - grand_y - slope * (x - grand_x))) FILTER (WHERE used) AS effect_error,
        sum(abs(y - mean_y - layer_slope * (x - mean_x))) FILTER (WHERE used) AS both_error
    FROM regression_rows AS edit
    JOIN lines AS line
        ON line.pair = edit.pair
        AND line.source IS NOT DISTINCT FROM edit.source
        AND line.score = edit.score
        AND line.effect_at = edit.effect_at
        AND line.subset = edit.subset
        AND line.layers = edit.layers
        AND line.layer = edit.layer
    GROUP BY ALL
),
errors AS NOT MATERIALIZED (
    SELECT
        pair, source, score, effect_at, subset, layers,
        count(*) FILTER (WHERE n > 0) AS n_facts,
        count(*) FILTER (WHERE n = 0) AS n_facts_left_out,
        sum(layer_error) / sum(n) AS mae_layer,
        sum(effect_error) / sum(n) AS mae_effect,
        sum(both_error) / sum(n) AS mae_both
    FROM fact_errors
    GROUP BY ALL
)
SELECT
    fit.problem, fit.method, fit.protocol, fit.model, fit.module, fit.localization, fit.metric, fit.tokens,
    fit.window_size, fit.edit_run, fit.trace_run, fit.edit_run_id, fit.trace_run_id, fit.source, fit.score,
    fit.effect_at, fit.subset, fit.layers,
    fit.n,
    errors.n_facts,
    fit.n_layers,
    fit.n_left_out,
    errors.n_facts_left_out,
    fit.n_below_0,
    fit.n_outside,
    fit.effect_min,
    fit.effect_max,
    CASE WHEN y_varies THEN greatest(1 - left_layer / total_yy, 0) END AS r2_layer,
    CASE WHEN y_varies THEN explained_effect / total_yy END AS r2_effect,
    CASE WHEN y_varies THEN greatest(1 - left_both / total_yy, 0) END AS r2_both,
    CASE WHEN y_varies THEN explained / total_yy END AS diff,
    CASE
        WHEN y_varies AND n_slopes > 0 AND df_both > 0 AND left_both > 1e-12 * total_yy
            THEN (explained / n_slopes) / (left_both / df_both)
    END AS f_value,
    CASE WHEN fit.n > 0 THEN n_slopes END AS df_num,
    CASE WHEN fit.n > 0 THEN df_both END AS df_den,
    CASE WHEN fit.n > 0 THEN sqrt(left_layer / fit.n) END AS rmse_layer,
    CASE WHEN fit.n > 0 THEN sqrt(left_effect / fit.n) END AS rmse_effect,
    CASE WHEN fit.n > 0 THEN sqrt(left_both / fit.n) END AS rmse_both,
    errors.mae_layer,
    errors.mae_effect,
    errors.mae_both,
    CASE WHEN x_varies AND y_varies THEN total_xy / sqrt(total_xx * total_yy) END AS rho
FROM group_fits AS fit
JOIN errors
    ON errors.pair = fit.pair
    AND errors.source IS NOT DISTINCT FROM fit.source
    AND errors.score = fit.score
    AND errors.effect_at = fit.effect_at
    AND errors.subset = fit.subset
    AND errors.layers = fit.layers;
