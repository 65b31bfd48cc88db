-- edit_scores: every score of every edit beside the tracing effect it is to be compared with.
-- Grain: one row an edit (run, fact, problem, method, layer), tracing run it can be compared with, and score name.
-- Inputs: edit_values, run_pairs, trace_effects, facts. trace_run_id is NULL where nothing was traced to compare with,
-- source (the fact's data set) where the store was not given the fact itself.
-- Units: pair = number of the runs (run_pairs); value = the score, 1 = wholly successful; effect = fraction of the lost
-- probability restored, the largest over tokens, effect_last_subject at the last subject token, effect_absolute the
-- probability itself there. Each is NULL where undefined.
CREATE OR REPLACE TEMP VIEW edit_scores AS
WITH traced AS (  -- of the grids that some edit is compared with
    SELECT
        compared.grid, trace.fact_id, trace.layer, trace.effect, trace.effect_last_subject, trace.effect_absolute
    FROM trace_effects AS trace
    JOIN (SELECT DISTINCT grid, trace_run_id, window_size FROM run_pairs) AS compared
        ON compared.trace_run_id = trace.run_id AND compared.window_size = trace.window_size
)
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
    pair.pair,
    fact.source,
    edit.score,
    edit.fact_id,
    edit.layer,
    edit.value,
    traced.effect,
    traced.effect_last_subject,
    traced.effect_absolute
FROM edit_values AS edit
JOIN run_pairs AS pair
    ON pair.edit_run_id = edit.edit_run_id
    AND pair.problem = edit.problem
    AND pair.method = edit.method
    AND pair.edit_window_size = edit.window_size
LEFT JOIN traced
    ON traced.grid = pair.grid AND traced.fact_id = edit.fact_id AND traced.layer = edit.layer
LEFT JOIN facts AS fact ON fact.fact_id = edit.fact_id;
