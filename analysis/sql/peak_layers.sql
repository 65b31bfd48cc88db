-- peak_layers: the layer at which each fact's tracing effect is largest (paper, Figure 1).
-- Grain: one row per (tracing run, window_size, fact_id). Facts whose effect is NULL at every layer have no row.
-- Inputs: trace_effects, runs. Units: peak_layer counts from 0 and is the lowest layer of equal effects; n_layers =
-- highest traced layer + 1; peak_effect = fraction of p_clean - p_noised. localization = the tracing run's method.
SELECT
    run.model,
    effect.protocol,
    effect.module,
    effect.method AS localization,
    effect.window_size,
    effect.run_id AS trace_run_id,
    effect.fact_id,
    first(effect.layer ORDER BY effect.effect DESC, effect.layer) AS peak_layer,
    max(effect.effect) AS peak_effect,
    max(effect.layer) + 1 AS n_layers
FROM trace_effects AS effect
JOIN runs AS run ON run.run_id = effect.run_id
WHERE effect.effect IS NOT NULL
GROUP BY run.model, effect.protocol, effect.module, effect.method, effect.window_size, effect.run_id, effect.fact_id
ORDER BY model, effect.protocol, module, localization, window_size, trace_run_id, effect.fact_id;
