-- regressions_of_score: the regressions of one score, in the order tables are read.
-- Grain: as regressions. Parameters: score = its name; effect_at = 'max' or 'last-subject'; window_size, or NULL for all;
-- protocol, or NULL for both. Inputs: regressions. Units: as regressions.
SELECT *
FROM regressions
WHERE score = $score
  AND effect_at = $effect_at
  AND ($window_size IS NULL OR window_size = $window_size)
  AND ($protocol IS NULL OR protocol = $protocol)
ORDER BY problem, method, protocol, model, window_size, module, localization, edit_run_id, trace_run_id;
