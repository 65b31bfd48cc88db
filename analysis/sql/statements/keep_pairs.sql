-- keep_pairs: leaves in run_pairs only the runs that were asked for, before any edit is read.
-- Grain: a statement; returns the number of pairs taken out. Inputs: run_pairs.
-- Parameters: window_size (of tracing), protocol, problem, method, localization, model, each NULL for all. Units: layers.
DELETE FROM run_pairs
WHERE (
    ($window_size IS NULL OR window_size = $window_size)
    AND ($protocol IS NULL OR protocol = $protocol)
    AND ($problem IS NULL OR problem = $problem)
    AND ($method IS NULL OR method = $method)
    AND ($localization IS NULL OR localization = $localization)
    AND ($model IS NULL OR model = $model)
) IS NOT TRUE;
