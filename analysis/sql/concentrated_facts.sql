-- concentrated_facts: facts whose tracing effect is concentrated in few layers (paper, Appendix B, Table 2).
-- Grain: one row per (tracing run, fact, window_size) that is concentrated: its peak effect is positive, and at most
-- three other layers have at least half of the peak effect. Inputs: trace_effects.
-- Units: peak_effect = largest effect over tokens and layers, a fraction of the lost probability; n_layers_high =
-- number of layers other than the peak layer with at least half of peak_effect.
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
