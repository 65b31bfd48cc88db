-- fact_names: prompt, subject, targets and source of each fact that was traced or edited.
-- Grain: one row per fact_id. Inputs: facts, traces, edits.
-- Units: prompt includes the subject; a column is NULL where neither facts nor traces has a value; source = data set of
-- the fact, NULL where the fact is not in facts.
WITH traced AS (
    SELECT
        fact_id,
        any_value(prompt) AS prompt,
        any_value(subject) AS subject,
        any_value(relation) AS relation,
        any_value(target_true) AS target_true,
        any_value(target_false) AS target_false
    FROM traces
    GROUP BY fact_id
),
named AS (
    SELECT fact_id FROM traces
    UNION
    SELECT fact_id FROM edits
)
SELECT
    named.fact_id,
    coalesce(traced.prompt, replace(facts.prompt, '{}', facts.subject)) AS prompt,
    coalesce(traced.subject, facts.subject) AS subject,
    coalesce(traced.relation, facts.relation) AS relation,
    coalesce(traced.target_true, facts.target_true) AS target_true,
    coalesce(traced.target_false, facts.target_false) AS target_false,
    facts.source
FROM named
LEFT JOIN traced ON traced.fact_id = named.fact_id
LEFT JOIN facts ON facts.fact_id = named.fact_id
ORDER BY subject, named.fact_id;
