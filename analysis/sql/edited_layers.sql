-- edited_layers: at which edited layers an edit can change anything, and at which editing works.
-- Grain: one row per (editing run, problem, method, edit window, source of the facts, layer), for the edits in run_pairs.
-- Inputs: scored_edits, run_pairs, facts.
-- Units: acting = at least one edit at the layer acts (scored_edits); working = the layer's mean rewrite score is
-- positive and at least 0.9 of the best layer's mean. Both take every edit, also those without a tracing effect.
WITH means AS (
    SELECT
        edit.run_id AS edit_run_id,
        edit.problem,
        edit.method,
        edit.window_size AS edit_window_size,
        fact.source,
        edit.layer,
        bool_or(edit.acts) AS acting,
        avg(edit.rewrite) AS mean_rewrite
    FROM scored_edits AS edit
    SEMI JOIN run_pairs AS pair
        ON pair.edit_run_id = edit.run_id
        AND pair.problem = edit.problem
        AND pair.method = edit.method
        AND pair.edit_window_size = edit.window_size
    LEFT JOIN facts AS fact ON fact.fact_id = edit.fact_id
    GROUP BY ALL
)
SELECT
    * EXCLUDE (mean_rewrite),
    coalesce(
        mean_rewrite > 0 AND mean_rewrite >= 0.9 * max(mean_rewrite) OVER (
            PARTITION BY edit_run_id, problem, method, edit_window_size, source
        ),
        FALSE
    ) AS working
FROM means;
