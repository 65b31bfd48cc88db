-- edit_values: every score of every edit, a row each.
-- Grain: one row an edit (run, fact, problem, method, layer) and score name. Inputs: edits.
-- A branch a score, each with its name as a constant: a query for one score reads only that score's column.
-- Units: value = the score, 1 = wholly successful, magnitude = p*(o_false) - p*(o_true); NULL where undefined.
CREATE OR REPLACE TEMP VIEW edit_values AS
WITH long AS (
    SELECT edits.*, 'rewrite' AS score, rewrite AS value FROM edits
    UNION ALL
    SELECT edits.*, 'paraphrase', paraphrase FROM edits
    UNION ALL
    SELECT edits.*, 'neighborhood', neighborhood FROM edits
    UNION ALL
    SELECT edits.*, 'essence', essence FROM edits
    UNION ALL
    SELECT edits.*, 'overall', overall FROM edits
    UNION ALL
    SELECT edits.*, 'magnitude', magnitude FROM edits
)
SELECT
    run_id AS edit_run_id, protocol, fact_id, problem, method, layer, window_size, score,
    CASE WHEN isfinite(value) THEN value END AS value
FROM long;
