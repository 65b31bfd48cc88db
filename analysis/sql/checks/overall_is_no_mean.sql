-- overall_is_no_mean: edits whose overall score is not the mean of rewrite, paraphrase and neighborhood (paper, section
-- 3.4). It must be NULL exactly where one of the three is NULL.
-- Grain: one row per wrong edit. Inputs: edits, mass_edits. Units: scores; mean is NULL where one of the three is.
WITH found AS (
    SELECT
        'edits' AS relation, run_id, fact_id, problem, method, layer, overall,
        (rewrite + paraphrase + neighborhood) / 3 AS mean
    FROM edits
    UNION ALL
    SELECT
        'mass_edits', run_id, fact_id, problem, method, layer, overall,
        (rewrite + paraphrase + neighborhood) / 3
    FROM mass_edits
)
SELECT *
FROM found
WHERE (overall IS NULL) <> (mean IS NULL) OR abs(overall - mean) > 1e-9 * greatest(1, abs(mean));
