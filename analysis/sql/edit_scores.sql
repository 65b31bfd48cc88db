-- edit_scores: every score of every edit beside the tracing effect it is to be compared with.
-- Grain: one row an edit (run, fact, problem, method, layer), tracing run it can be compared with, and score name.
-- Inputs: edits, runs, trace_effects. An editing run is paired with every tracing run of the same model_hash and
-- protocol that has its window size; runs are never pooled. trace_run_id is NULL where there is none.
-- Units: value = the score, 1 = wholly successful; effect = fraction of the lost probability restored, the largest
-- over tokens, effect_last_subject at the last subject token. Each is NULL where undefined.
CREATE OR REPLACE TEMP VIEW edit_scores AS
WITH
edit_grids AS (SELECT DISTINCT run_id, window_size FROM edits),
trace_grids AS (
    SELECT DISTINCT
        cell.run_id,
        cell.window_size,
        run.model_hash,
        run.protocol,
        coalesce(run.settings ->> '$.module', 'mlp') AS module,
        coalesce(run.settings ->> '$.method', 'denoise') AS localization
    FROM trace_cells AS cell
    JOIN runs AS run ON run.run_id = cell.run_id
),
run_pairs AS (
    SELECT
        edit_grids.run_id AS edit_run_id,
        trace_grids.run_id AS trace_run_id,
        edit_grids.window_size,
        run.model,
        run.protocol,
        trace_grids.module,
        trace_grids.localization
    FROM edit_grids
    JOIN runs AS run ON run.run_id = edit_grids.run_id
    LEFT JOIN trace_grids
        ON trace_grids.model_hash = run.model_hash
        AND trace_grids.protocol = run.protocol
        AND trace_grids.window_size = edit_grids.window_size
),
long AS (
    SELECT *
    FROM (
        SELECT
            run_id, fact_id, problem, method, layer, window_size,
            rewrite, paraphrase, neighborhood, essence, overall, magnitude
        FROM edits
    )
    UNPIVOT INCLUDE NULLS (value FOR score IN (rewrite, paraphrase, neighborhood, essence, overall, magnitude))
)
SELECT
    long.problem,
    long.method,
    run_pairs.protocol,
    run_pairs.model,
    run_pairs.module,
    run_pairs.localization,
    long.window_size,
    run_pairs.edit_run_id,
    run_pairs.trace_run_id,
    long.score,
    long.fact_id,
    long.layer,
    CASE WHEN isfinite(long.value) THEN long.value END AS value,
    CASE WHEN isfinite(trace.effect) THEN trace.effect END AS effect,
    CASE WHEN isfinite(trace.effect_last_subject) THEN trace.effect_last_subject END AS effect_last_subject
FROM long
JOIN run_pairs ON run_pairs.edit_run_id = long.run_id AND run_pairs.window_size = long.window_size
LEFT JOIN trace_effects AS trace
    ON trace.run_id = run_pairs.trace_run_id
    AND trace.fact_id = long.fact_id
    AND trace.layer = long.layer
    AND trace.window_size = long.window_size;
