-- regression_input: the raw rows of the chosen regressions, for computations outside SQL.
-- Grain: one row per edit and tracing run, including edits without an effect or a score. Inputs: regression_rows.
-- Parameters: score, effect_at, subset, layers, or NULL for 'all', and source, or NULL for all. The parameters of
-- run_pairs choose the runs.
-- Units: x = tracing effect, y = score.
SELECT
    problem, method, protocol, model, module, localization, metric, tokens, window_size, edit_run, trace_run,
    edit_run_id, trace_run_id, source, score, effect_at, subset, layers, fact_id, layer, x, y
FROM regression_rows
WHERE score = $score
  AND effect_at = $effect_at
  AND subset = $subset
  AND layers = coalesce($layers, 'all')
  AND ($source IS NULL OR source = $source)
ORDER BY
    problem, method, protocol, model, window_size, module, localization, metric, tokens, source, edit_run_id,
    trace_run_id, layer, fact_id;
