-- facts_of_run: the facts a tracing or editing run was given, as an own JSONL file holds them; of a mass edit, in the
-- order in which they were edited.
-- Grain: one row a fact. Parameter: run_id. Inputs: facts, traces, edits, mass_edits. Facts that the store was not given are absent.
-- Units: prompt is a template with one "{}"; paraphrases and neighborhood are whole prompts.
SELECT fact_id, source, relation, prompt, subject, target_true, target_false, paraphrases, neighborhood
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
