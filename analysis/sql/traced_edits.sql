-- traced_edits: every edit with the tracing effect of the same fact at the same layer.
-- Grain: one row per edit (edit_run_id, fact_id, problem, method, layer) and tracing run that it is compared with
-- (run_pairs).
-- Inputs: edits, run_pairs, trace_effects, facts.
-- Units: the columns of edits as in edits, with run_id as edit_run_id and window_size as edit_window_size; a score
-- that is not finite is NULL. window_size = tracing window in layers; localization = tracing method; module = module
-- whose output the tracing run replaced; pair = number of the pair of runs. effect, effect_last_subject,
-- effect_absolute, peak_token_index, p_restored_max, approximate, p_clean and p_noised as in trace_effects;
-- effect_reason = why effect is NULL. source, relation and subject of the fact are NULL where the fact is not in
-- facts.
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
    edit.* EXCLUDE (run_id, protocol, window_size) REPLACE (
        CASE WHEN isfinite(edit.rewrite) THEN edit.rewrite END AS rewrite,
        CASE WHEN isfinite(edit.paraphrase) THEN edit.paraphrase END AS paraphrase,
        CASE WHEN isfinite(edit.neighborhood) THEN edit.neighborhood END AS neighborhood,
        CASE WHEN isfinite(edit.essence) THEN edit.essence END AS essence,
        CASE WHEN isfinite(edit.overall) THEN edit.overall END AS overall,
        CASE WHEN isfinite(edit.magnitude) THEN edit.magnitude END AS magnitude
    ),
    pair.edit_window_size,
    pair.pair,
    pair.trace_run_id,
    pair.module,
    pair.localization,
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
        WHEN traced.p_noised >= traced.p_clean THEN 'the noise did not lower p(o_true)'
        ELSE 'undefined'
    END AS effect_reason,
    fact.source,
    fact.relation,
    fact.subject
FROM edits AS edit
JOIN run_pairs AS pair
    ON pair.edit_run_id = edit.run_id
    AND pair.problem = edit.problem
    AND pair.method = edit.method
    AND pair.edit_window_size = edit.window_size
LEFT JOIN traced ON traced.grid = pair.grid AND traced.fact_id = edit.fact_id AND traced.layer = edit.layer
LEFT JOIN facts AS fact ON fact.fact_id = edit.fact_id;
