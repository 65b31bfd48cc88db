-- facts_of_run: the facts of a tracing or editing run, in the columns of a fact file (JSONL); for a mass edit, in the
-- order in which they were edited.
-- Grain: one row per fact. Parameter: run_id. Inputs: facts, traces, edits, mass_edits. Facts that are not in facts
-- have no row.
-- Units: prompt is a template with one "{}"; paraphrases, neighborhood and counterfactual_prompt are complete prompts.
SELECT fact_id, source, relation, prompt, subject, target_true, target_false, paraphrases, neighborhood,
    target_prefix, counterfactual_subject, counterfactual_prompt
FROM facts
WHERE fact_id IN (
    SELECT fact_id FROM traces WHERE run_id = $run_id
    UNION
    SELECT fact_id FROM edits WHERE run_id = $run_id
    UNION
    SELECT fact_id FROM mass_edits WHERE run_id = $run_id
)
ORDER BY
    (SELECT min(mass.position) FROM mass_edits AS mass WHERE mass.run_id = $run_id AND mass.fact_id = facts.fact_id),
    fact_id;
