-- fact_traces: every trace of every fact, kept or left out.
-- Grain: one row per (run, fact, window_size); window_size is NULL where the fact has no cells.
-- Inputs: traces, trace_cells, runs, trace_settings, run_names. Units: p_clean, p_noised are probabilities; localization,
-- tokens = the tracing run's method and tokens; trace_run = its name (run_names); token_texts = the prompt's tokens, of
-- which the subject has [subject_begin, subject_end); reason is NULL where the fact was kept. Newest runs first.
SELECT
    trace.run_id AS trace_run_id,
    run.model,
    trace.protocol,
    asked.module,
    asked.method AS localization,
    asked.tokens,
    named.run_name AS trace_run,
    trace.fact_id,
    grid.window_size,
    trace.prompt,
    trace.subject,
    trace.relation,
    trace.target_true,
    trace.p_clean,
    trace.p_noised,
    trace.tokens AS token_texts,
    trace.subject_begin,
    trace.subject_end,
    trace.sigma,
    trace.kept,
    trace.reason
FROM traces AS trace
JOIN runs AS run ON run.run_id = trace.run_id
JOIN trace_settings AS asked ON asked.run_id = trace.run_id
LEFT JOIN run_names AS named ON named.run_id = trace.run_id
LEFT JOIN (SELECT DISTINCT run_id, fact_id, window_size FROM trace_cells) AS grid
    ON grid.run_id = trace.run_id AND grid.fact_id = trace.fact_id
ORDER BY trace.fact_id, run.created_at DESC, trace.run_id, grid.window_size;
