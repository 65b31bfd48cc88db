-- layer_means: the mean of each score at each edited layer, including edits of facts without a tracing effect.
-- Grain: one row per (problem, method, protocol, model, window_size, editing run, score, layer).
-- Inputs: scored_edits, runs, run_names.
-- Units: mean over the n edits that have the score, in units of the score; sd = standard deviation (n - 1) and
-- sem = sd / sqrt(n), both NULL for n < 2; n_left_out = edits without this score; n_below_0 = edits whose score is below
-- 0; edit_run = the run's name (run_names).
WITH scored AS NOT MATERIALIZED (
    SELECT
        *,
        CASE score
            WHEN 'rewrite' THEN rewrite
            WHEN 'paraphrase' THEN paraphrase
            WHEN 'neighborhood' THEN neighborhood
            WHEN 'essence' THEN essence
            WHEN 'overall' THEN overall
            WHEN 'magnitude' THEN magnitude
            WHEN 'rewrite_floored' THEN rewrite_floored
            WHEN 'paraphrase_floored' THEN paraphrase_floored
            WHEN 'overall_floored' THEN overall_floored
        END AS y
    FROM scored_edits
    CROSS JOIN (
        VALUES ('rewrite'), ('paraphrase'), ('neighborhood'), ('essence'), ('overall'), ('magnitude'),
        ('rewrite_floored'), ('paraphrase_floored'), ('overall_floored')
    ) AS name (score)
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
