-- layer_means: the mean of each score at each edited layer, including edits of facts without a tracing effect.
-- Grain: one row per (problem, method, protocol, model, window_size, editing run, score, layer).
-- Inputs: edits, runs.
-- Units: mean over the n edits that have the score, in units of the score; sd = standard deviation (n - 1) and
-- sem = sd / sqrt(n), both NULL for n < 2; n_left_out = edits without this score.
-- Each score is a branch with a constant name, so that DuckDB reads only the scores that a query selects.
WITH scored AS NOT MATERIALIZED (
    SELECT *, 'rewrite' AS score, rewrite AS y FROM edits
    UNION ALL
    SELECT *, 'paraphrase' AS score, paraphrase AS y FROM edits
    UNION ALL
    SELECT *, 'neighborhood' AS score, neighborhood AS y FROM edits
    UNION ALL
    SELECT *, 'essence' AS score, essence AS y FROM edits
    UNION ALL
    SELECT *, 'overall' AS score, overall AS y FROM edits
    UNION ALL
    SELECT *, 'magnitude' AS score, magnitude AS y FROM edits
)
SELECT
    edit.problem,
    edit.method,
    edit.protocol,
    run.model,
    edit.window_size,
    edit.run_id AS edit_run_id,
    edit.score,
    edit.layer,
    count(edit.y) FILTER (WHERE isfinite(edit.y)) AS n,
    count(*) - n AS n_left_out,
    avg(edit.y) FILTER (WHERE isfinite(edit.y)) AS mean,
    stddev_samp(edit.y) FILTER (WHERE isfinite(edit.y)) AS sd,
    sd / sqrt(n) AS sem
FROM scored AS edit
JOIN runs AS run ON run.run_id = edit.run_id
GROUP BY ALL;
