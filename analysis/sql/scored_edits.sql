-- scored_edits: every edit with its scores, with and without a floor at 0, and whether it changed anything.
-- Grain: one row per edit, as in edits. Inputs: edits.
-- Units: the columns of edits, but a score that is not finite is NULL. rewrite_floored, paraphrase_floored = the score,
-- or 0 where it is below 0; overall_floored = mean of rewrite_floored, paraphrase_floored and neighborhood, NULL if one
-- of them is. acts = the edit changed the probability of its target or of o_true on the fact's prompt, by any amount. An
-- edit that is zero leaves both exactly as they were.
SELECT
    edit.* REPLACE (
        CASE WHEN isfinite(edit.rewrite) THEN edit.rewrite END AS rewrite,
        CASE WHEN isfinite(edit.paraphrase) THEN edit.paraphrase END AS paraphrase,
        CASE WHEN isfinite(edit.neighborhood) THEN edit.neighborhood END AS neighborhood,
        CASE WHEN isfinite(edit.essence) THEN edit.essence END AS essence,
        CASE WHEN isfinite(edit.overall) THEN edit.overall END AS overall,
        CASE WHEN isfinite(edit.magnitude) THEN edit.magnitude END AS magnitude
    ),
    CASE WHEN isfinite(edit.rewrite) THEN greatest(edit.rewrite, 0) END AS rewrite_floored,
    CASE WHEN isfinite(edit.paraphrase) THEN greatest(edit.paraphrase, 0) END AS paraphrase_floored,
    CASE WHEN isfinite(edit.neighborhood) THEN (rewrite_floored + paraphrase_floored + edit.neighborhood) / 3 END
        AS overall_floored,
    coalesce(edit.p_after <> edit.p_before, FALSE) OR coalesce(edit.p_true_after <> edit.p_true_before, FALSE) AS acts
FROM edits AS edit;
