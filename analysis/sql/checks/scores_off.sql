-- scores_off: edits whose scores are not those of their prompts, by more than rounding (1e-9).
-- Grain: one row per wrong (edit, kind of prompt). Inputs: edit_prompts, edits. Units: stored, found = the score of the
-- edit, and the mean over its prompts of that kind without answers of their own. Protocol 'released' reads the first
-- prompt alone. Prompts of older stores have no score and are not compared.
WITH found AS (
    SELECT
        run_id, fact_id, problem, method, layer, kind,
        CASE WHEN any_value(protocol) = 'released' THEN arg_min(score, prompt_index) ELSE avg(score) END AS found
    FROM edit_prompts
    WHERE answer IS NULL AND score IS NOT NULL
      AND (kind, expect) IN (('rewrite', 'changed'), ('paraphrase', 'changed'), ('neighborhood', 'unchanged'))
    GROUP BY ALL
),
compared AS (
    SELECT
        found.*,
        CASE found.kind
            WHEN 'rewrite' THEN edits.rewrite
            WHEN 'paraphrase' THEN edits.paraphrase
            ELSE edits.neighborhood
        END AS stored
    FROM found
    JOIN edits USING (run_id, fact_id, problem, method, layer)
)
SELECT run_id, fact_id, problem, method, layer, kind, stored, found
FROM compared
WHERE abs(stored - found) > 1e-9 * greatest(1, abs(found)) OR stored IS NULL;
