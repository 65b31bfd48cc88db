-- regressions: how much of a score the edited layer explains, the tracing effect, and both (paper, Tables 1 to 8).
-- Grain: one row a group as in layer_sums. Inputs: group_fits, group_errors. Models: as in group_fits.
-- Units: n, n_left_out, n_facts, n_facts_left_out: as there; r2_* = share of the variance of the score, NULL where the
-- score does not vary; diff = r2_both - r2_layer; f_value with df_num and df_den tests both against layer, NULL where no
-- degree of freedom is left or 1 - r2_both < 1e-12 (its relative error is about 1e-16 / (1 - r2_both)); rmse_* and
-- mae_* in units of the score; rho = Pearson's correlation of x and y over all layers.
CREATE OR REPLACE TEMP VIEW regressions AS
SELECT
    fit.problem, fit.method, fit.protocol, fit.model, fit.module, fit.localization, fit.window_size,
    fit.edit_run_id, fit.trace_run_id, fit.source, fit.score, fit.effect_at, fit.subset,
    fit.n,
    rest.n_facts,
    fit.n_left_out,
    rest.n_facts_left_out,
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
    rest.mae_layer,
    rest.mae_effect,
    rest.mae_both,
    CASE WHEN x_varies AND y_varies THEN total_xy / sqrt(total_xx * total_yy) END AS rho
FROM group_fits AS fit
JOIN group_errors AS rest
    ON rest.pair = fit.pair
    AND rest.source IS NOT DISTINCT FROM fit.source
    AND rest.score = fit.score
    AND rest.effect_at = fit.effect_at
    AND rest.subset = fit.subset;
