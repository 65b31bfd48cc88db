-- regression_rows: the two numbers a regression sees, for each choice of facts and of the token of the effect.
-- Grain: one row an edit, tracing run, score, subset ('all' facts, or the 'concentrated' ones of that tracing run) and
-- effect_at ('max' over tokens, 'last-subject', or 'last-subject-absolute', which is no fraction: paper, Figure 14).
-- Inputs: edit_scores, concentrated_facts. A branch a subset, so that all facts are read without asking which are
-- concentrated. Units: x = tracing effect, y = score; used = both are defined.
CREATE OR REPLACE TEMP VIEW regression_rows AS
WITH chosen AS (
    SELECT edit.*, 'all' AS subset FROM edit_scores AS edit
    UNION ALL
    SELECT edit.*, 'concentrated' AS subset
    FROM edit_scores AS edit
    SEMI JOIN concentrated_facts AS fact
        ON fact.run_id = edit.trace_run_id
        AND fact.fact_id = edit.fact_id
        AND fact.window_size = edit.window_size
)
SELECT
    chosen.* EXCLUDE (value, effect, effect_last_subject, effect_absolute),
    choice.effect_at,
    CASE choice.effect_at WHEN 'max' THEN effect WHEN 'last-subject' THEN effect_last_subject ELSE effect_absolute END AS x,
    value AS y,
    x IS NOT NULL AND y IS NOT NULL AS used
FROM chosen
CROSS JOIN (VALUES ('max'), ('last-subject'), ('last-subject-absolute')) AS choice (effect_at);
