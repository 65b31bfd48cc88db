-- success_rates: how often an edit puts the right target ahead, by kind of prompt (Meng et al. 2022, section 3.4).
-- Grain: one row a (problem, method, protocol, model, window_size, edit_run_id, layer, kind of prompt). Inputs:
-- edit_prompts, runs.
-- Units: before, after = share of prompts, 0 to 1; prompts = how many. Ahead of what: the edited target of o_true where
-- the edit works in another target, else o_true of o_false, or behind it where it is to be erased. On neighbourhood
-- prompts o_true of the other target always, since they are to stay. Prompts without both targets are not counted.
WITH sides AS (
    SELECT
        prompt.problem, prompt.method, prompt.protocol, run.model, prompt.window_size, prompt.run_id AS edit_run_id,
        prompt.layer, prompt.kind,
        prompt.p_true_before AS true_before,
        prompt.p_true_after AS true_after,
        CASE WHEN prompt.problem IN ('error-injection', 'tracing-reversal')
            THEN prompt.p_before ELSE prompt.p_false_before END AS other_before,
        CASE WHEN prompt.problem IN ('error-injection', 'tracing-reversal')
            THEN prompt.p_after ELSE prompt.p_false_after END AS other_after,
        prompt.kind = 'neighborhood' OR prompt.problem IN ('fact-amplification', 'fact-forcing') AS true_wins
    FROM edit_prompts AS prompt
    JOIN runs AS run ON run.run_id = prompt.run_id
    WHERE prompt.kind <> 'essence'
)
SELECT
    problem, method, protocol, model, window_size, edit_run_id, layer, kind,
    avg(CASE WHEN true_wins THEN true_before > other_before ELSE other_before > true_before END::INTEGER) AS before,
    avg(CASE WHEN true_wins THEN true_after > other_after ELSE other_after > true_after END::INTEGER) AS after,
    count(*) AS prompts
FROM sides
WHERE true_before IS NOT NULL AND other_before IS NOT NULL
GROUP BY ALL
ORDER BY ALL;
