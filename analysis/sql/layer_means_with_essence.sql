-- layer_means_with_essence: the mean of all four scores at each edited layer (paper, Figure 9, right).
-- Grain: one row per (problem, method, protocol, model, window_size, editing run, layer).
-- Inputs: scored_edits, runs, run_names.
-- Units: as in layer_means. An edit's value is the mean of its rewrite, paraphrase, neighborhood and essence scores.
WITH means AS (
    SELECT
        problem, method, window_size, run_id, layer,
        count((3 * overall + essence) / 4) AS n,
        count(*) - n AS n_left_out,
        count(*) FILTER (WHERE 3 * overall + essence < 0) AS n_below_0,
        avg((3 * overall + essence) / 4) AS mean,
        stddev_samp((3 * overall + essence) / 4) AS sd
    FROM scored_edits
    GROUP BY ALL
)
SELECT
    means.problem,
    means.method,
    run.protocol,
    run.model,
    means.window_size,
    named.run_name AS edit_run,
    means.run_id AS edit_run_id,
    'overall with essence' AS score,
    means.layer,
    means.n,
    means.n_left_out,
    means.n_below_0,
    means.mean,
    means.sd,
    means.sd / sqrt(means.n) AS sem
FROM means
JOIN runs AS run ON run.run_id = means.run_id
LEFT JOIN run_names AS named ON named.run_id = means.run_id
ORDER BY problem, method, run.protocol, model, window_size, edit_run_id, layer;
