-- facts_of_run: the facts of a tracing or editing run, in the columns of a fact file (JSONL); for a mass edit, in the
-- order in which they were edited.
-- Grain: one row per fact. Parameter: run_id. Inputs: facts, traces, edits, mass_edits. Facts that are not in facts
-- have no row.
-- Units: prompt is a template with one "{}"; paraphrases, neighborhood and counterfactual_prompt are complete prompts.
-- counterfactual_prompt and counterfactual_answer are those of a tracing run, NULL without any.
SELECT
    facts.fact_id, facts.source, facts.relation, facts.prompt, facts.subject, facts.target_true, facts.target_false,
    facts.paraphrases, facts.neighborhood, facts.target_prefix, traced.counterfactuals AS counterfactual_prompt,
    CASE WHEN facts.target_false IS NULL THEN traced.target_false END AS counterfactual_answer
FROM facts
LEFT JOIN traces AS traced ON traced.run_id = $run_id AND traced.fact_id = facts.fact_id
WHERE facts.fact_id IN (
    SELECT fact_id FROM traces WHERE run_id = $run_id
    UNION
    SELECT fact_id FROM edits WHERE run_id = $run_id
    UNION
    SELECT fact_id FROM mass_edits WHERE run_id = $run_id
)
ORDER BY
    (SELECT min(mass.position) FROM mass_edits AS mass WHERE mass.run_id = $run_id AND mass.fact_id = facts.fact_id),
    facts.fact_id;
