-- scores_by_layer: the mean scores at each edited layer, side by side (paper, Figures 7 and 9).
-- Grain: one row per (problem, method, protocol, model, window_size, editing run, layer). Inputs: layer_means.
-- Units: n = edits; means in units of the scores, NULL where no edit has the score; X_below_0 = edits whose
-- score X is below 0; X_floored = mean of the score with a floor at 0; edit_run = the run's name (run_names).
SELECT
    problem, method, protocol, model, window_size, edit_run, edit_run_id, layer,
    max(n + n_left_out) AS n,
    any_value(mean) FILTER (WHERE score = 'rewrite') AS rewrite,
    any_value(mean) FILTER (WHERE score = 'paraphrase') AS paraphrase,
    any_value(mean) FILTER (WHERE score = 'neighborhood') AS neighborhood,
    any_value(mean) FILTER (WHERE score = 'overall') AS overall,
    any_value(n_below_0) FILTER (WHERE score = 'rewrite') AS rewrite_below_0,
    any_value(n_below_0) FILTER (WHERE score = 'paraphrase') AS paraphrase_below_0,
    any_value(n_below_0) FILTER (WHERE score = 'overall') AS overall_below_0,
    any_value(mean) FILTER (WHERE score = 'rewrite_floored') AS rewrite_floored,
    any_value(mean) FILTER (WHERE score = 'paraphrase_floored') AS paraphrase_floored,
    any_value(mean) FILTER (WHERE score = 'overall_floored') AS overall_floored
FROM layer_means
GROUP BY problem, method, protocol, model, window_size, edit_run, edit_run_id, layer
ORDER BY problem, method, protocol, model, window_size, edit_run_id, layer;
