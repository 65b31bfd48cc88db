-- layer_means: the mean of each score at each edited layer, whether the fact has a tracing effect or not.
-- Grain: one row a (problem, method, protocol, model, window_size, editing run, score, layer).
-- Inputs: edits, runs. Units: mean in units of the score over the n edits that have it; sd = standard deviation
-- (n - 1), sem = sd / sqrt(n), both NULL for n < 2; n_left_out = edits without this score.
CREATE OR REPLACE TEMP VIEW layer_means AS
WITH long AS (
    SELECT *
    FROM (
        SELECT
            edit.run_id AS edit_run_id, edit.problem, edit.method, edit.protocol, run.model, edit.window_size,
            edit.layer, edit.rewrite, edit.paraphrase, edit.neighborhood, edit.essence, edit.overall, edit.magnitude
        FROM edits AS edit
        JOIN runs AS run ON run.run_id = edit.run_id
    )
    UNPIVOT INCLUDE NULLS (value FOR score IN (rewrite, paraphrase, neighborhood, essence, overall, magnitude))
)
SELECT
    problem, method, protocol, model, window_size, edit_run_id, score, layer,
    count(value) FILTER (WHERE isfinite(value)) AS n,
    count(*) - n AS n_left_out,
    avg(value) FILTER (WHERE isfinite(value)) AS mean,
    stddev_samp(value) FILTER (WHERE isfinite(value)) AS sd,
    sd / sqrt(n) AS sem
FROM long
GROUP BY ALL;
