-- run_pairs: which tracing runs the edits of an editing run are compared with.
-- Grain: one row per editing run, problem, method, window size and tracing run of the same model_hash and protocol that
-- has effects for the tracing window. trace_run_id is NULL where there is no such tracing run. Runs are never pooled.
-- Inputs: edits, trace_effects, runs, trace_runs, run_names.
-- Parameters: tracing_window, or NULL for the window size of each edit (paper, Figure 12); protocol, problem, method,
-- module, localization, metric, tokens, model, trace_run_id and edit_run_id, each a value to keep, or NULL for all.
-- Units: window_size (of tracing) and edit_window_size in layers; module, localization, metric and tokens of the
-- tracing run as in trace_runs; edit_run and trace_run = names of the runs (run_names), NULL where no setting differs;
-- pair = number of the row; grid = number of its tracing run and window size.
-- This is a table and not a view, because many relations read its few rows. Its numbers replace texts in joins and
-- groups over millions of rows, and runs are chosen before any edit is read.
WITH
edited AS (
    SELECT DISTINCT
        run_id,
        problem,
        method,
        window_size AS edit_window_size,
        coalesce($tracing_window, window_size)::INTEGER AS window_size
    FROM edits
    WHERE ($problem IS NULL OR problem = $problem) AND ($method IS NULL OR method = $method)
),
traced AS (
    SELECT
        run_id,
        window_size,
        any_value(model_hash) AS model_hash,
        any_value(protocol) AS protocol
    FROM trace_effects
    GROUP BY run_id, window_size
)
SELECT
    row_number() OVER (ORDER BY edited.run_id, problem, edited.method, edit_window_size, traced.run_id)::INTEGER AS pair,
    dense_rank() OVER (ORDER BY traced.run_id, edited.window_size)::INTEGER AS grid,
    edited.run_id AS edit_run_id,
    edited.problem,
    edited.method,
    edited.edit_window_size,
    edited.window_size,
    run.model,
    run.protocol,
    traced.run_id AS trace_run_id,
    asked.module,
    asked.localization,
    asked.metric,
    asked.tokens,
    edit_name.run_name AS edit_run,
    asked.trace_run
FROM edited
JOIN runs AS run ON run.run_id = edited.run_id
LEFT JOIN traced
    ON traced.model_hash = run.model_hash
    AND traced.protocol = run.protocol
    AND traced.window_size = edited.window_size
LEFT JOIN trace_runs AS asked ON asked.run_id = traced.run_id
LEFT JOIN run_names AS edit_name ON edit_name.run_id = edited.run_id
WHERE ($protocol IS NULL OR run.protocol = $protocol)
    AND ($model IS NULL OR run.model = $model)
    AND ($module IS NULL OR asked.module = $module)
    AND ($localization IS NULL OR asked.localization = $localization)
    AND ($metric IS NULL OR asked.metric = $metric)
    AND ($tokens IS NULL OR asked.tokens = $tokens)
    AND ($trace_run_id IS NULL OR traced.run_id = $trace_run_id)
    AND ($edit_run_id IS NULL OR edited.run_id = $edit_run_id);
