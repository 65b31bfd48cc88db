-- fact_edits: the edits of the given facts.
-- Grain: one row per edit (run, fact, problem, method, layer). Parameter: fact_ids = list of fact ids.
-- Inputs: edits, runs, run_names. Units: scores, where 1 is full success; p_* are probabilities; target = the text that the edit
-- makes likelier or less likely; reason = why the fact was not edited (its scores are NULL) or why its edit is zero.
-- Layers count from 0.
SELECT
    edit.fact_id,
    named.run_name AS edit_run,
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
LEFT JOIN run_names AS named ON named.run_id = edit.run_id
WHERE edit.fact_id IN (SELECT unnest($fact_ids))
ORDER BY edit.fact_id, run.created_at, edit.problem, edit.method, edit.layer;
