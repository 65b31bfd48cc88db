-- scores_by_kind: mean scores and greedy matches by kind of prompt: rewrite, paraphrases, neighborhood prompts and probes.
-- Grain: one row per (editing run, layer, number of edits in the model, kind of prompt, what is expected of it).
-- Inputs: edit_prompts, mass_prompts, mass_edits, runs, run_names.
-- Units: n_edits = edits that the model has, NULL where each edit is scored by itself; score = mean, where 1 is full
-- success, over the n_scored prompts that have one; p_before, p_after = mean probability of the prompt's target, or of
-- the likeliest answer of a probe that has its own; match_before, match_after = share of prompts whose greedy
-- continuation is one of the answers; exact_after, prefix_after = share of the continued prompts whose text is an answer
-- or begins with one (--generate; NULL without); edit_run = the run's name (run_names). Layers count from 0.
WITH prompts AS (
    SELECT
        run_id, protocol, fact_id, problem, method, layer, window_size, NULL AS n_edits, kind, expect, score, p_before,
        p_after, match_before, match_after, exact_after, prefix_after
    FROM edit_prompts
    UNION ALL
    SELECT
        prompt.run_id, prompt.protocol, prompt.fact_id, mass.problem, mass.method, mass.layer, mass.window_size,
        prompt.n_edits, prompt.kind, prompt.expect, prompt.score, prompt.p_before, prompt.p_after, prompt.match_before,
        prompt.match_after, prompt.exact_after, prompt.prefix_after
    FROM mass_prompts AS prompt
    JOIN mass_edits AS mass
        ON mass.run_id = prompt.run_id AND mass.n_edits = prompt.n_edits AND mass.fact_id = prompt.fact_id
)
SELECT
    prompt.problem, prompt.method, prompt.protocol, run.model, prompt.window_size, named.run_name AS edit_run,
    prompt.run_id AS edit_run_id, prompt.layer, prompt.n_edits, prompt.kind, prompt.expect,
    count(*) AS prompts,
    count(prompt.score) AS n_scored,
    avg(prompt.score) AS score,
    avg(prompt.p_before) AS p_before,
    avg(prompt.p_after) AS p_after,
    avg(prompt.match_before::INTEGER) AS match_before,
    avg(prompt.match_after::INTEGER) AS match_after,
    avg(prompt.exact_after::INTEGER) AS exact_after,
    avg(prompt.prefix_after::INTEGER) AS prefix_after
FROM prompts AS prompt
JOIN runs AS run ON run.run_id = prompt.run_id
LEFT JOIN run_names AS named ON named.run_id = prompt.run_id
WHERE prompt.kind <> 'essence'
GROUP BY ALL
ORDER BY
    prompt.problem, prompt.method, prompt.protocol, run.model, prompt.window_size, prompt.run_id, prompt.layer,
    prompt.n_edits, prompt.kind, prompt.expect;
