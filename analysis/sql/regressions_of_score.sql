-- regressions_of_score: the regressions of one score that were asked for, in the order tables are read.
-- Grain: as regressions. Parameters: score, effect_at, subset, and source, or NULL for all. Runs are chosen by the
-- parameters of run_pairs. Inputs: regressions. Units: as regressions.
SELECT *
FROM regressions
WHERE score = $score
  AND effect_at = $effect_at
  AND subset = $subset
  AND ($source IS NULL OR source = $source)
ORDER BY
    problem, method, protocol, model, window_size, module, localization, source, edit_run_id, trace_run_id;
