-- layer_means_of_score: the means of one score, layer by layer.
-- Grain: as layer_means. Parameter: score = its name. Inputs: layer_means. Units: as there.
SELECT *
FROM layer_means
WHERE score = $score
ORDER BY problem, method, protocol, model, window_size, edit_run_id, layer;
