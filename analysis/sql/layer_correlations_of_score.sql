-- layer_correlations_of_score: the correlations of one score, layer by layer.
-- Grain: as layer_correlation. Parameters: score = its name; effect_at = 'max' or 'last-subject'.
-- Inputs: layer_correlation. Units: as there.
SELECT *
FROM layer_correlation
WHERE score = $score AND effect_at = $effect_at
ORDER BY problem, method, protocol, model, window_size, module, localization, edit_run_id, trace_run_id, layer;
