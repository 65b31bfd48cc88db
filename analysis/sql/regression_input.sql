-- regression_input: the raw rows of the regressions of one score, as a check by other means wants them.
-- Grain: one row an edit and tracing run, with those that have no effect or score. Inputs: regression_rows.
-- Parameters: score = its name; effect_at = 'max' or 'last-subject'. Units: x = tracing effect, y = score.
SELECT
    problem, method, protocol, model, module, localization, window_size, edit_run_id, trace_run_id, score, effect_at,
    fact_id, layer, x, y
FROM regression_rows
WHERE score = $score AND effect_at = $effect_at
ORDER BY problem, method, protocol, model, window_size, module, localization, edit_run_id, trace_run_id, layer, fact_id;
