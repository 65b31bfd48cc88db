-- regression_rows: the two numbers a regression sees, for both ways of choosing the token of the effect.
-- Grain: one row an edit, tracing run, score and effect_at ('max' over tokens, or 'last-subject').
-- Inputs: edit_scores. Units: x = tracing effect, y = score; used = both are defined.
CREATE OR REPLACE TEMP VIEW regression_rows AS
WITH long AS (
    SELECT
        edit_scores.* EXCLUDE (value, effect, effect_last_subject),
        choice.effect_at,
        CASE choice.effect_at WHEN 'max' THEN effect ELSE effect_last_subject END AS x,
        value AS y
    FROM edit_scores
    CROSS JOIN (VALUES ('max'), ('last-subject')) AS choice (effect_at)
)
SELECT long.*, x IS NOT NULL AND y IS NOT NULL AS used
FROM long;
