-- layer_means_with_essence: the mean of all four scores at each edited layer (paper, Figure 9, right).
-- Grain: one row per (problem, method, protocol, model, window_size, editing run, layer). Inputs: edits, runs.
-- Units: as in layer_means. An edit's value is the mean of its rewrite, paraphrase, neighborhood and essence scores.
WITH fours AS (
    SELECT
        edit.problem, edit.method, edit.protocol, run.model, edit.window_size, edit.run_id AS edit_run_id, edit.layer,
        (3 * edit.overall + edit.essence) / 4 AS value
    FROM edits AS edit
    JOIN runs AS run ON run.run_id = edit.run_id
)
SELECT
    problem, method, protocol, model, window_size, edit_run_id,
    'overall with essence' AS score,
    layer,
    count(value) AS n,
    count(*) - n AS n_left_out,
    avg(value) AS mean,
    stddev_samp(value) AS sd,
    sd / sqrt(n) AS sem
FROM fours
GROUP BY problem, method, protocol, model, window_size, edit_run_id, layer
ORDER BY problem, method, protocol, model, window_size, edit_run_id, layer;
