-- run_progress: what every run computes, and how much of it the store has.
-- Grain: one row per run, oldest first. Inputs: runs, trace_settings, edit_settings, mass_settings, known, traces, edits,
-- mass_edits, moments, benches.
-- Units: finished = how many of `unit` the store has: facts that are traced, tested or edited into one model (also those
-- that were left out), edits of one fact at one layer, tokens of second moments, or measurements of a benchmark;
-- seconds of compute; created_at in UTC, when the run began.
WITH asked AS (
    SELECT run_id, module, method, NULL AS problem FROM trace_settings
    UNION ALL
    SELECT run_id, NULL, method, problem FROM edit_settings
    UNION ALL
    SELECT run_id, NULL, method, problem FROM mass_settings
),
counted AS (
    SELECT run_id, 'facts' AS unit, count(*) AS finished FROM traces GROUP BY run_id
    UNION ALL
    SELECT run_id, 'facts', count(*) FROM known GROUP BY run_id
    UNION ALL
    SELECT run_id, 'edits', count(*) FROM edits GROUP BY run_id
    UNION ALL
    SELECT run_id, 'facts', count(DISTINCT fact_id) FROM mass_edits GROUP BY run_id
    UNION ALL
    SELECT run_id, 'tokens', n_tokens FROM moments
    UNION ALL
    SELECT run_id, 'measurements', count(*) FROM benches GROUP BY run_id
)
SELECT
    run.run_id, run.kind, run.model, asked.module, asked.method, asked.problem, run.protocol,
    coalesce(counted.finished, 0) AS finished,
    counted.unit,
    run.seconds,
    run.created_at
FROM runs AS run
LEFT JOIN asked ON asked.run_id = run.run_id
LEFT JOIN counted ON counted.run_id = run.run_id
ORDER BY run.created_at, run.run_id;
