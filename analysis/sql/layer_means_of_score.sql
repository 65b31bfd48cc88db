-- layer_means_of_score: the mean of one score at each edited layer.
-- Grain: as in layer_means. Parameter: score = the score's name. Inputs: layer_means. Units: as in layer_means.
SELECT *
FROM layer_means
WHERE score = $score
ORDER BY problem, method, protocol, model, window_size, edit_run_id, layer;
