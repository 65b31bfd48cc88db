-- measures_without_scores: measures, norms and tasks of an edited model at a number of edits that has no scores.
-- Grain: one row per wrong (relation, run, number of edits). Inputs: mass_measures, mass_norms, mass_tasks, mass_edits.
-- Units: n_edits as in mass_edits.
WITH found AS (
    SELECT DISTINCT 'mass_measures' AS relation, run_id, n_edits FROM mass_measures
    UNION ALL
    SELECT DISTINCT 'mass_norms', run_id, n_edits FROM mass_norms
    UNION ALL
    SELECT DISTINCT 'mass_tasks', run_id, n_edits FROM mass_tasks
)
SELECT found.*
FROM found
ANTI JOIN mass_edits USING (run_id, n_edits);
