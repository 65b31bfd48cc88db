-- regressions_of_score: the regressions of one score that were asked for, in the order tables are read.
-- Grain: as regressions. Parameters: score, effect_at, subset; window_size, or NULL; protocol, or NULL; source, or NULL;
-- problem, or NULL; method, or NULL; localization, or NULL; model, or NULL: NULL keeps all. Inputs: regressions. Units: as regressions.
SELECT *
FROM regressions
WHERE score = $score
  AND effect_at = $effect_at
  AND subset = $subset
  AND ($window_size IS NULL OR window_size = $window_size)
  AND ($protocol IS NULL OR protocol = $protocol)
  AND ($source IS NULL OR source = $source)
  AND ($problem IS NULL OR problem = $problem)
  AND ($method IS NULL OR method = $method)
  AND ($localization IS NULL OR localization = $localization)
  AND ($model IS NULL OR model = $model)
ORDER BY
    problem, method, protocol, model, window_size, module, localization, source, edit_run_id, trace_run_id;
