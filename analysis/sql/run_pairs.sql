-- run_pairs: which tracing runs the edits of an editing run are compared with.
-- Grain: one row an editing run, problem, method and window size, and tracing run of the same model_hash and protocol that
-- has the tracing window: the edits' own, or the one that `SET VARIABLE tracing_window = 10` asked for before this was made
-- (paper, Figure 12). Runs are never pooled. trace_run_id is NULL where there is none. A table, as it is small, read from
-- every side, and its numbers stand for a handful of texts in joins and groups over millions of rows.
-- Inputs: edits, trace_effects, runs. Units: pair = the row's number, grid = that of its tracing run and window size;
-- window_size (of tracing) and edit_window_size in layers; module and localization (its method) are the tracing run's
-- settings.
CREATE OR REPLACE TEMP TABLE run_pairs AS
WITH
edited AS (
    SELECT DISTINCT
        run_id, problem, method,
        window_size AS edit_window_size,
        coalesce(getvariable('tracing_window'), window_size)::INTEGER AS window_size
    FROM edits
),
traced AS (
    SELECT DISTINCT run_id, window_size FROM trace_effects
),
compared AS (
    SELECT
        edited.run_id AS edit_run_id,
        edited.problem,
        edited.method,
        edited.edit_window_size,
        edited.window_size,
        edit_run.model,
        edit_run.protocol,
        trace_run.run_id AS trace_run_id,
        CASE WHEN trace_run.run_id IS NOT NULL THEN coalesce(trace_run.settings ->> '$.module', 'mlp') END AS module,
        CASE WHEN trace_run.run_id IS NOT NULL THEN coalesce(trace_run.settings ->> '$.method', 'denoise') END
            AS localization
    FROM edited
    JOIN runs AS edit_run ON edit_run.run_id = edited.run_id
    LEFT JOIN (SELECT runs.*, traced.window_size FROM traced JOIN runs USING (run_id)) AS trace_run
        ON trace_run.model_hash = edit_run.model_hash
        AND trace_run.protocol = edit_run.protocol
        AND trace_run.window_size = edited.window_size
)
SELECT
    row_number() OVER (ORDER BY edit_run_id, problem, method, edit_window_size, trace_run_id)::INTEGER AS pair,
    dense_rank() OVER (ORDER BY trace_run_id, window_size)::INTEGER AS grid,
    compared.*
FROM compared;
