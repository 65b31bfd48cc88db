-- layer_means: the mean of each score at each edited layer, including edits of facts without a tracing effect.
-- Grain: one row per (problem, method, protocol, model, window_size, editing run, score, layer).
-- Inputs: scored_edits, runs, run_names.
-- Units: mean over the n edits that have the score, in units of the score; sd = standard deviation (n - 1) and
-- sem = sd / sqrt(n), both NULL for n < 2; n_left_out = edits without this score; n_below_0 = edits whose score is below
-- 0; edit_run = the run's name (run_names).
-- Each score is a branch with a constant name, so that DuckDB reads only the scores that a query selects.
WITH scored AS NOT MATERIALIZED (
    SELECT *, 'rewrite' AS score, rewrite AS y FROM scored_edits
    UNION ALL
    SELECT *, 'paraphrase' AS score, paraphrase AS y FROM scored_edits
    UNION ALL
    SELECT *, 'neighborhood' AS score, neighborhood AS y FROM scored_edits
    UNION ALL
    SELECT *, 'essence' AS score, essence AS y FROM scored_edits
    UNION ALL
    SELECT *, 'overall' AS score, overall AS y FROM scored_edits
    UNION ALL
    SELECT *, 'magnitude' AS score, magnitude AS y FROM scored_edits
    UNION ALL
    SELECT *, 'rewrite_floored' AS score, rewrite_floored AS y FROM scored_edits
    UNION ALL
    SELECT *, 'paraphrase_floored' AS score, paraphrase_floored AS y FROM scored_edits
    UNION ALL
    SELECT *, 'overall_floored' AS score, overall_floored AS y FROM scored_edits
),
means AS (
    SELECT
        problem, method, window_size, run_id, score, layer,
        count(y) AS n,
        count(*) - n AS n_left_out,
        count(*) FILTER (WHERE y < 0) AS n_below_0,
        avg(y) AS mean,
        stddev_samp(y) AS sd
    FROM scored
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
    means.score,
    means.layer,
    means.n,
    means.n_left_out,
    means.n_below_0,
    means.mean,
    means.sd,
    means.sd / sqrt(means.n) AS sem
FROM means
JOIN runs AS run ON run.run_id = means.run_id
LEFT JOIN run_names AS named ON named.run_id = means.run_id;
