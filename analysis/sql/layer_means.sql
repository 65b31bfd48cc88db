-- layer_means: the mean of each score at each edited layer, whether the fact has a tracing effect or not.
-- Grain: one row a (problem, method, protocol, model, window_size, editing run, score, layer).
-- Inputs: edit_values, runs. Units: mean in units of the score over the n edits that have it; sd = standard deviation
-- (n - 1), sem = sd / sqrt(n), both NULL for n < 2; n_left_out = edits without this score.
CREATE OR REPLACE TEMP VIEW layer_means AS
SELECT
    edit.problem, edit.method, edit.protocol, run.model, edit.window_size, edit.edit_run_id, edit.score, edit.layer,
    count(edit.value) AS n,
    count(*) - n AS n_left_out,
    avg(edit.value) AS mean,
    stddev_samp(edit.value) AS sd,
    sd / sqrt(n) AS sem
FROM edit_values AS edit
JOIN runs AS run ON run.run_id = edit.edit_run_id
GROUP BY ALL;
