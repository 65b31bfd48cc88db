-- traced_edits: every edit with the tracing effect of the same fact at the same layer.
-- Grain: one row per edit (edit_run_id, fact_id, problem, method, layer) and tracing run that it is compared with
-- (run_pairs).
-- Inputs: scored_edits, run_pairs, trace_effects, facts.
-- Units: the columns of scored_edits as there, with run_id as edit_run_id and window_size as edit_window_size.
-- window_size = tracing window in layers; localization, metric, tokens and module = how the tracing run localizes
-- facts, what its effects are made of, the tokens at which it intervened, and the module whose output it replaced
-- (trace_runs); edit_run, trace_run = names of the runs (run_names); pair = number of the pair of runs. effect,
-- effect_last_subject, effect_absolute, peak_token_index, p_restored_max, approximate, p_clean and p_noised as in
-- trace_effects; effect_reason = why effect is NULL. source, relation and subject of the fact are NULL where the fact
-- is not in facts.
WITH traced AS (  -- only the grids that an edit is compared with
    SELECT compared.grid, trace.*
    FROM trace_effects AS trace
    JOIN (SELECT DISTINCT grid, trace_run_id, window_size FROM run_pairs) AS compared
        ON compared.trace_run_id = trace.run_id AND compared.window_size = trace.window_size
)
SELECT
    pair.model,
    pair.protocol,
    edit.run_id AS edit_run_id,
    edit.* EXCLUDE (run_id, protocol, window_size),
    pair.edit_window_size,
    pair.pair,
    pair.trace_run_id,
    pair.module,
    pair.localization,
    pair.metric,
    pair.tokens,
    pair.edit_run,
    pair.trace_run,
    pair.window_size,
    traced.effect,
    traced.effect_last_subject,
    traced.effect_absolute,
    traced.peak_token_index,
    traced.p_restored_max,
    traced.approximate,
    traced.p_clean,
    traced.p_noised,
    CASE
        WHEN traced.effect IS NOT NULL THEN NULL
        WHEN pair.trace_run_id IS NULL THEN 'no trace of this model, protocol and window size'
        WHEN traced.fact_id IS NULL THEN 'the trace has no cells of this fact and layer'
        WHEN pair.metric <> 'probability' THEN 'the denominator of the effect is about 0'
        WHEN traced.p_noised >= traced.p_clean AND starts_with(pair.localization, 'counterfactual')
            THEN 'the counterfactuals did not lower p(o_true)'
        WHEN traced.p_noised >= traced.p_clean THEN 'the noise did not lower p(o_true)'
        ELSE 'undefined'
    END AS effect_reason,
    fact.source,
    fact.relation,
    fact.subject
FROM scored_edits AS edit
JOIN run_pairs AS pair
    ON pair.edit_run_id = edit.run_id
    AND pair.problem = edit.problem
    AND pair.method = edit.method
    AND pair.edit_window_size = edit.window_size
LEFT JOIN traced ON traced.grid = pair.grid AND traced.fact_id = edit.fact_id AND traced.layer = edit.layer
LEFT JOIN facts AS fact ON fact.fact_id = edit.fact_id;
