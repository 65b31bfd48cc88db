-- regression_rows: score and tracing effect of each edit, for every score, subset of facts, choice of layers and kind
-- of effect.
-- Grain: one row per edit and tracing run (traced_edits), score, subset, layers and effect_at. subset: 'all' facts,
-- or the facts that are 'concentrated' in the tracing run. layers: 'all' that were edited, or only the 'acting' or the
-- 'working' ones (edited_layers). effect_at: 'max' over tokens, 'last-subject', or
-- 'last-subject-absolute', which is a probability and not a fraction (paper, Figure 14).
-- Inputs: traced_edits, concentrated_facts, edited_layers.
-- Units: x = tracing effect; y = score, where 1 is full success, or magnitude = p*(o_false) - p*(o_true); used =
-- whether both are defined.
-- Each subset and choice of layers is a branch with a constant name, so that DuckDB reads only the branches that a query
-- selects. Scores are rows of a list, which the filter on the score reaches, because a branch each multiplies the plan.
WITH
scored AS NOT MATERIALIZED (
    SELECT
        *,
        CASE score
            WHEN 'rewrite' THEN rewrite
            WHEN 'paraphrase' THEN paraphrase
            WHEN 'neighborhood' THEN neighborhood
            WHEN 'essence' THEN essence
            WHEN 'overall' THEN overall
            WHEN 'magnitude' THEN magnitude
            WHEN 'rewrite_floored' THEN rewrite_floored
            WHEN 'paraphrase_floored' THEN paraphrase_floored
            WHEN 'overall_floored' THEN overall_floored
        END AS y
    FROM traced_edits
    CROSS JOIN (
        VALUES ('rewrite'), ('paraphrase'), ('neighborhood'), ('essence'), ('overall'), ('magnitude'),
        ('rewrite_floored'), ('paraphrase_floored'), ('overall_floored')
    ) AS name (score)
),
chosen AS NOT MATERIALIZED (
    SELECT *, 'all' AS subset FROM scored
    UNION ALL
    SELECT *, 'concentrated' AS subset
    FROM scored
    SEMI JOIN concentrated_facts AS few
        ON few.run_id = scored.trace_run_id
        AND few.fact_id = scored.fact_id
        AND few.window_size = scored.window_size
),
laid AS NOT MATERIALIZED (
    SELECT *, 'all' AS layers FROM chosen
    UNION ALL
    SELECT chosen.*, kind.layers
    FROM chosen
    CROSS JOIN (VALUES ('acting'), ('working')) AS kind (layers)
    SEMI JOIN edited_layers AS kept
        ON kept.edit_run_id = chosen.edit_run_id
        AND kept.problem = chosen.problem
        AND kept.method = chosen.method
        AND kept.edit_window_size = chosen.edit_window_size
        AND kept.source IS NOT DISTINCT FROM chosen.source
        AND kept.layer = chosen.layer
        AND CASE kind.layers WHEN 'acting' THEN kept.acting ELSE kept.working END
)
SELECT
    problem, method, protocol, model, module, localization, metric, tokens, window_size, edit_run, trace_run,
    edit_run_id, trace_run_id, pair, source, score, subset, layers, effect_at, fact_id, layer,
    CASE effect_at WHEN 'max' THEN effect WHEN 'last-subject' THEN effect_last_subject ELSE effect_absolute END AS x,
    y,
    x IS NOT NULL AND y IS NOT NULL AS used
FROM laid
CROSS JOIN (VALUES ('max'), ('last-subject'), ('last-subject-absolute')) AS choice (effect_at);
