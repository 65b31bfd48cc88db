-- edits_there: how many edits have each score, of those asked for.
-- Grain: one row. Parameters: problem, or NULL; method, or NULL; model (a part of its name), or NULL: NULL keeps
-- all; zsre = edits of zsRE's facts (else of all others). Inputs: edits, runs, facts. Units: numbers of edits.
SELECT
    count(edit.rewrite) AS rewrite,
    count(edit.paraphrase) AS paraphrase,
    count(edit.neighborhood) AS neighborhood,
    count(edit.essence) AS essence,
    count(edit.overall) AS overall,
    count(edit.magnitude) AS magnitude
FROM edits AS edit
JOIN runs AS run ON run.run_id = edit.run_id
LEFT JOIN facts AS fact ON fact.fact_id = edit.fact_id
WHERE ($problem IS NULL OR edit.problem = $problem)
    AND ($method IS NULL OR edit.method = $method)
    AND ($model IS NULL OR contains(run.model, $model))
    AND (coalesce(fact.source, '') = 'zsre') = $zsre;
