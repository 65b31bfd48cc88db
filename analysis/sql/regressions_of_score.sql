-- regressions_of_score: the regressions of one score, in the order of the paper's tables.
-- Grain: as in regressions. Parameters: score, effect_at, subset, layers, or NULL for 'all', and source, or NULL for
-- all. The parameters of run_pairs choose the runs. Inputs: regressions. Units: as in regressions.
SELECT *
FROM regressions
WHERE score = $score
  AND effect_at = $effect_at
  AND subset = $subset
  AND layers = coalesce($layers, 'all')
  AND ($source IS NULL OR source = $source)
ORDER BY
    problem, method, protocol, model, window_size, module, localization, metric, tokens, source, edit_run_id,
    trace_run_id;
