-- edit_effects: edit score beside tracing effect, as regressed and drawn (paper, Figure 4).
-- Grain: one row an edit and tracing run, for one score; edits without a score or an effect have no row.
-- Parameter: score = its name. Inputs: edit_scores.
-- Units: effect = fraction of the lost probability restored, largest over tokens; score in its own units.
SELECT
    problem, method, protocol, model, module, localization, window_size, edit_run_id, trace_run_id, source,
    fact_id, layer, effect, effect_last_subject, value AS score
FROM edit_scores
WHERE score = $score AND value IS NOT NULL AND effect IS NOT NULL
ORDER BY
    problem, method, protocol, model, window_size, module, localization, source, edit_run_id, trace_run_id, layer, fact_id;
