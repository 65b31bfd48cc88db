-- layer_correlations_of_score: the correlations of one score with the tracing effect at each edited layer.
-- Grain: as in layer_correlation. Parameters: score, effect_at, subset, layers, or NULL for 'all', and source, or NULL
-- for all. The parameters of run_pairs choose the runs. Inputs: layer_correlation. Units: as in layer_correlation.
SELECT *
FROM layer_correlation
WHERE score = $score
  AND effect_at = $effect_at
  AND subset = $subset
  AND layers = coalesce($layers, 'all')
  AND ($source IS NULL OR source = $source)
ORDER BY
    problem, method, protocol, model, window_size, module, localization, metric, tokens, source, edit_run_id,
    trace_run_id, layer;
