-- fact_edits: the edits of the facts asked for.
-- Grain: one row an edit (run, fact, problem, method, layer). Parameter: fact_ids, a list.
-- Inputs: edits, runs. Units: scores, 1 = wholly successful; p_* are probabilities; target = the text edited in or
-- out, reason = why a fact was not edited (its scores are NULL) or its edit is zero. Layers count from 0.
SELECT
    edit.fact_id,
    edit.run_id AS edit_run_id,
    run.model,
    edit.protocol,
    edit.problem,
    edit.method,
    edit.layer,
    edit.window_size,
    edit.rewrite,
    edit.paraphrase,
    edit.neighborhood,
    edit.essence,
    edit.overall,
    edit.p_before,
    edit.p_after,
    edit.p_true_before,
    edit.p_true_after,
    edit.success,
    edit.target,
    edit.reason
FROM edits AS edit
JOIN runs AS run ON run.run_id = edit.run_id
WHERE edit.fact_id IN (SELECT unnest($fact_ids))
ORDER BY edit.fact_id, run.created_at, edit.problem, edit.method, edit.layer;
