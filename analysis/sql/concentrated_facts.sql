-- concentrated_facts: facts whose tracing effect is concentrated in few layers (paper, Appendix B, Table 2).
-- Grain: one row a (tracing run, fact, window_size) that is: at most three layers besides the one with the largest effect
-- have at least half of it. Facts without a positive effect are not. Inputs: trace_effects.
-- Units: effect = the largest over tokens, a fraction of the lost probability; peak_effect = the largest over layers;
-- n_layers_high = layers besides that one with at least half of it.
WITH peaks AS (
    SELECT run_id, protocol, fact_id, window_size, max(effect) AS peak_effect, list(effect) AS effects
    FROM trace_effects
    WHERE effect IS NOT NULL
    GROUP BY run_id, protocol, fact_id, window_size
)
SELECT
    run_id, protocol, fact_id, window_size, peak_effect,
    len(list_filter(effects, lambda effect: effect >= 0.5 * peak_effect)) - 1 AS n_layers_high
FROM peaks
WHERE peak_effect > 0 AND n_layers_high <= 3;
