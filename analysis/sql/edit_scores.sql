-- edit_scores: every score of every edit beside the tracing effect it is to be compared with.
-- Grain: one row an edit (run, fact, problem, method, layer), tracing run it can be compared with, and score name.
-- Inputs: edit_values, run_pairs, trace_effects, facts. trace_run_id is NULL where nothing was traced to compare with,
-- source (the fact's data set) where the store was not given the fact itself.
-- Units: value = the score, 1 = wholly successful; effect = fraction of the lost probability restored, the largest
-- over tokens, effect_last_subject at the last subject token, effect_absolute the probability itself there. Each is
-- NULL where undefined.
CREATE OR REPLACE TEMP VIEW edit_scores AS
SELECT
    edit.problem,
    edit.method,
    pair.protocol,
    pair.model,
    pair.module,
    pair.localization,
    pair.window_size,
    edit.edit_run_id,
    pair.trace_run_id,
    fact.source,
    edit.score,
    edit.fact_id,
    edit.layer,
    edit.value,
    trace.effect,
    trace.effect_last_subject,
    trace.effect_absolute
FROM edit_values AS edit
JOIN run_pairs AS pair ON pair.edit_run_id = edit.edit_run_id AND pair.edit_window_size = edit.window_size
LEFT JOIN trace_effects AS trace
    ON trace.run_id = pair.trace_run_id
    AND trace.fact_id = edit.fact_id
    AND trace.layer = edit.layer
    AND trace.window_size = pair.window_size
LEFT JOIN facts AS fact ON fact.fact_id = edit.fact_id;
