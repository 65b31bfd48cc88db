-- run_pairs: which tracing runs an editing run is compared with.
-- Grain: one row an editing run, its window size, and tracing run of the same model_hash and protocol that has the
-- tracing window: the edits' own, or the one that `SET VARIABLE tracing_window = 10` asks for (paper, Figure 12). Runs are
-- never pooled. trace_run_id is NULL where there is none. Inputs: edits, trace_effects, runs.
-- Units: window_size (of tracing) and edit_window_size in layers; module and localization (its method) are the tracing
-- run's settings.
CREATE OR REPLACE TEMP VIEW run_pairs AS
WITH
edit_grids AS (
    SELECT DISTINCT run_id, window_size FROM edits
),
trace_grids AS (
    SELECT DISTINCT run_id, window_size FROM trace_effects
)
SELECT
    edit_grids.run_id AS edit_run_id,
    trace.run_id AS trace_run_id,
    edit_grids.window_size AS edit_window_size,
    coalesce(getvariable('tracing_window'), edit_grids.window_size)::INTEGER AS window_size,
    run.model,
    run.protocol,
    trace.module,
    trace.localization
FROM edit_grids
JOIN runs AS run ON run.run_id = edit_grids.run_id
LEFT JOIN (
    SELECT
        trace_grids.run_id,
        trace_grids.window_size,
        run.model_hash,
        run.protocol,
        coalesce(run.settings ->> '$.module', 'mlp') AS module,
        coalesce(run.settings ->> '$.method', 'denoise') AS localization
    FROM trace_grids
    JOIN runs AS run ON run.run_id = trace_grids.run_id
) AS trace
    ON trace.model_hash = run.model_hash
    AND trace.protocol = run.protocol
    AND trace.window_size = coalesce(getvariable('tracing_window'), edit_grids.window_size)::INTEGER;
