-- no_probability: probabilities below 0 or above 1 by more than rounding (1e-6).
-- Grain: one row per wrong row. Inputs: every relation with probabilities. Units: least, most = the row's smallest and
-- largest probability.
WITH found AS (
    SELECT
        'traces' AS relation, run_id, fact_id, NULL AS layer,
        least(p_clean, p_noised, p_false_clean, p_false_noised) AS least,
        greatest(p_clean, p_noised, p_false_clean, p_false_noised) AS most
    FROM traces
    UNION ALL
    SELECT
        'trace_cells', run_id, fact_id, layer,
        least(p_restored, p_screened, p_false_restored),
        greatest(p_restored, p_screened, p_false_restored)
    FROM trace_cells
    UNION ALL
    SELECT 'trace_samples', run_id, fact_id, layer, p_restored, p_restored FROM trace_samples
    UNION ALL
    SELECT 'known', run_id, fact_id, NULL, p_true, p_true FROM known
    UNION ALL
    SELECT
        'edits', run_id, fact_id, layer,
        least(p_before, p_after, p_true_before, p_true_after),
        greatest(p_before, p_after, p_true_before, p_true_after)
    FROM edits
    UNION ALL
    SELECT
        'mass_edits', run_id, fact_id, layer,
        least(p_before, p_after, p_true_before, p_true_after),
        greatest(p_before, p_after, p_true_before, p_true_after)
    FROM mass_edits
    UNION ALL
    SELECT
        'edit_prompts', run_id, fact_id, layer,
        least(p_before, p_after, p_true_before, p_true_after, p_false_before, p_false_after),
        greatest(p_before, p_after, p_true_before, p_true_after, p_false_before, p_false_after)
    FROM edit_prompts
    UNION ALL
    SELECT
        'mass_prompts', run_id, fact_id, NULL,
        least(p_before, p_after, p_true_before, p_true_after, p_false_before, p_false_after),
        greatest(p_before, p_after, p_true_before, p_true_after, p_false_before, p_false_after)
    FROM mass_prompts
)
SELECT * FROM found WHERE least < 0 OR most > 1 + 1e-6;
