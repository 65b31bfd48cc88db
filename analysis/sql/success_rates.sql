-- success_rates: how often the wanted target is the likelier one after an edit, by kind of prompt (Meng et al. 2022,
-- section 3.4).
-- Grain: one row per (problem, method, protocol, model, window_size, edit_run_id, layer, kind of prompt). Inputs:
-- edit_prompts, runs, run_names.
-- Units: edit_run = the run's name (run_names); before, after = share of prompts, 0 to 1; prompts = number of prompts. For injection and reversal the edited
-- target is compared with o_true, for the other problems o_true with o_false. The wanted target is the edited one for
-- injection and reversal, o_true for amplification and forcing, and o_false for erasure. On neighborhood prompts it is
-- always o_true, as on every prompt that should not change. Prompts without both probabilities are not counted, so no
-- probe with answers of its own is.
WITH sides AS (
    SELECT
        prompt.problem, prompt.method, prompt.protocol, run.model, prompt.window_size, named.run_name AS edit_run,
        prompt.run_id AS edit_run_id,
        prompt.layer, prompt.kind,
        prompt.p_true_before AS true_before,
        prompt.p_true_after AS true_after,
        CASE WHEN prompt.problem IN ('error-injection', 'tracing-reversal')
            THEN prompt.p_before ELSE prompt.p_false_before END AS other_before,
        CASE WHEN prompt.problem IN ('error-injection', 'tracing-reversal')
            THEN prompt.p_after ELSE prompt.p_false_after END AS other_after,
        prompt.kind = 'neighborhood' OR prompt.expect = 'unchanged' OR prompt.problem IN ('fact-amplification', 'fact-forcing') AS true_wins
    FROM edit_prompts AS prompt
    JOIN runs AS run ON run.run_id = prompt.run_id
    LEFT JOIN run_names AS named ON named.run_id = prompt.run_id
    WHERE prompt.kind <> 'essence'
)
SELECT
    problem, method, protocol, model, window_size, edit_run, edit_run_id, layer, kind,
    avg(CASE WHEN true_wins THEN true_before > other_before ELSE other_before > true_before END::INTEGER) AS before,
    avg(CASE WHEN true_wins THEN true_after > other_after ELSE other_after > true_after END::INTEGER) AS after,
    count(*) AS prompts
FROM sides
WHERE true_before IS NOT NULL AND other_before IS NOT NULL
GROUP BY ALL
ORDER BY problem, method, protocol, model, window_size, edit_run_id, layer, kind;
