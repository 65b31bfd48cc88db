-- edit_effects: edit score and tracing effect of each edit, as regressed and drawn (paper, Figure 4).
-- Grain: one row per edit and tracing run, for one score. Edits without a score or an effect have no row.
-- Inputs: regression_rows.
-- Parameter: score = the score's name.
-- Units: effect = largest over tokens of the fraction of the lost probability that is restored; score in its own units.
SELECT
    problem, method, protocol, model, module, localization, metric, tokens, window_size, edit_run, trace_run,
    edit_run_id, trace_run_id, source, fact_id, layer, x AS effect, y AS score
FROM regression_rows
WHERE score = $score AND effect_at = 'max' AND subset = 'all' AND layers = 'all' AND used
ORDER BY
    problem, method, protocol, model, window_size, module, localization, metric, tokens, source, edit_run_id,
    trace_run_id, layer, fact_id;
