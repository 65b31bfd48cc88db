-- edit_effects: edit score beside tracing effect, as regressed and drawn (paper, Figure 4).
-- Grain: one row an edit and tracing run, for one score; edits without a score or an effect have no row.
-- Inputs: regression_rows.
-- Parameter: score = its name.
-- Units: effect = fraction of the lost probability restored, largest over tokens; score in its own units.
SELECT
    problem, method, protocol, model, module, localization, window_size, edit_run_id, trace_run_id, source,
    fact_id, layer, x AS effect, y AS score
FROM regression_rows
WHERE score = $score AND effect_at = 'max' AND subset = 'all' AND used
ORDER BY
    problem, method, protocol, model, window_size, module, localization, source, edit_run_id, trace_run_id, layer, fact_id;
