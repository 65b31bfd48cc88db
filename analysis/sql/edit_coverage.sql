-- edit_coverage: how many edits have each score.
-- Grain: one row per (editing run, problem, method, window_size, source). Inputs: edits, runs, facts.
-- Units: numbers of edits; source = data set of the facts, NULL if the store was not given them.
SELECT
    run.model,
    edit.problem,
    edit.method,
    edit.window_size,
    fact.source,
    edit.run_id AS edit_run_id,
    count(edit.rewrite) AS rewrite,
    count(edit.paraphrase) AS paraphrase,
    count(edit.neighborhood) AS neighborhood,
    count(edit.essence) AS essence,
    count(edit.overall) AS overall,
    count(edit.magnitude) AS magnitude
FROM edits AS edit
JOIN runs AS run ON run.run_id = edit.run_id
LEFT JOIN facts AS fact ON fact.fact_id = edit.fact_id
GROUP BY ALL
ORDER BY ALL;
