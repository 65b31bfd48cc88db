-- teacher_forcing_gap: how much more often an edit's answer is found where its own tokens are given than where the model
-- generates. With fact-erasure, the answer is the one to be lost.
-- Grain: one row per (editing run, layer, number of edits in the model, kind of prompt, what is expected of it).
-- Inputs: edit_prompts, mass_prompts, mass_edits, runs, run_names. Only prompts that were continued (--generate).
-- Units: n_edits = edits that the model has, NULL where each edit is scored by itself; p_after = mean probability of the
-- prompt's answer; forced = share of prompts where every token of the answer is the likeliest after the tokens before
-- it; exact, prefix = share whose greedy continuation, as text, is the answer or begins with it; judged = share of those
-- judged that a judge accepts, NULL without one; gap_exact = forced - exact; gap_prefix = forced - prefix. Where nothing
-- should change, the answer is o_true. edit_run = the run's name (run_names). Layers count from 0.
WITH prompts AS (
    SELECT
        run_id, protocol, problem, method, layer, window_size, NULL AS n_edits, kind, expect, p_after, match_after,
        exact_after, prefix_after, judged_after
    FROM edit_prompts
    WHERE exact_after IS NOT NULL
    UNION ALL
    SELECT
        prompt.run_id, prompt.protocol, mass.problem, mass.method, mass.layer, mass.window_size, prompt.n_edits,
        prompt.kind, prompt.expect, prompt.p_after, prompt.match_after, prompt.exact_after, prompt.prefix_after,
        prompt.judged_after
    FROM mass_prompts AS prompt
    JOIN mass_edits AS mass
        ON mass.run_id = prompt.run_id AND mass.n_edits = prompt.n_edits AND mass.fact_id = prompt.fact_id
    WHERE prompt.exact_after IS NOT NULL
)
SELECT
    prompt.problem, prompt.method, prompt.protocol, run.model, prompt.window_size, named.run_name AS edit_run,
    prompt.run_id AS edit_run_id, prompt.layer, prompt.n_edits, prompt.kind, prompt.expect,
    count(*) AS prompts,
    avg(prompt.p_after) AS p_after,
    avg(prompt.match_after::INTEGER) AS forced,
    avg(prompt.exact_after::INTEGER) AS exact,
    avg(prompt.prefix_after::INTEGER) AS prefix,
    avg(prompt.judged_after::INTEGER) AS judged,
    avg(prompt.match_after::INTEGER) - avg(prompt.exact_after::INTEGER) AS gap_exact,
    avg(prompt.match_after::INTEGER) - avg(prompt.prefix_after::INTEGER) AS gap_prefix
FROM prompts AS prompt
JOIN runs AS run ON run.run_id = prompt.run_id
LEFT JOIN run_names AS named ON named.run_id = prompt.run_id
GROUP BY ALL
ORDER BY
    prompt.problem, prompt.method, prompt.protocol, run.model, prompt.window_size, prompt.run_id, prompt.layer,
    prompt.n_edits, prompt.kind, prompt.expect;
