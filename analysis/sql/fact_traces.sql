-- fact_traces: every trace of every fact, kept or left out.
-- Grain: one row per (run, fact, window_size); window_size is NULL where the fact has no cells.
-- Inputs: traces, trace_cells, runs, trace_runs. Units: p_*, logit_diff_*, logprob_* and kl_noised as in traces;
-- localization, metric, tokens and trace_run as in trace_runs; token_texts = the prompt's tokens, of which the subject
-- has [subject_begin, subject_end); counterfactuals = the prompts of the corrupted passes, NULL with noise; reason =
-- why the fact was left out, or which of its counterfactuals were. Newest runs first.
SELECT
    trace.run_id AS trace_run_id,
    asked.model,
    trace.protocol,
    asked.module,
    asked.localization,
    asked.metric,
    asked.tokens,
    asked.trace_run,
    trace.fact_id,
    grid.window_size,
    trace.prompt,
    trace.subject,
    trace.relation,
    trace.target_true,
    trace.scored,
    trace.target_false,
    trace.p_clean,
    trace.p_noised,
    trace.logit_diff_clean,
    trace.logit_diff_noised,
    trace.logprob_clean,
    trace.logprob_noised,
    trace.kl_noised,
    trace.tokens AS token_texts,
    trace.subject_begin,
    trace.subject_end,
    trace.sigma,
    trace.counterfactuals,
    trace.kept,
    trace.reason
FROM traces AS trace
JOIN runs AS run ON run.run_id = trace.run_id
JOIN trace_runs AS asked ON asked.run_id = trace.run_id
LEFT JOIN (SELECT DISTINCT run_id, fact_id, window_size FROM trace_cells) AS grid
    ON grid.run_id = trace.run_id AND grid.fact_id = trace.fact_id
ORDER BY trace.fact_id, run.created_at DESC, trace.run_id, grid.window_size;
