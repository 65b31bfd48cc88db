-- fact_peaks: the layer at which each fact's tracing effect is largest, by run and window.
-- Grain: one row per (tracing run, window_size, fact_id). Facts whose effect is NULL at every layer have no row.
-- Inputs: trace_effects. Units: peak_layer counts from 0 and is the lowest layer of equal effects; peak_effect = the
-- largest effect; n_layers = highest traced layer + 1.
SELECT
    run_id, window_size, fact_id,
    first(layer ORDER BY effect DESC, layer) AS peak_layer,
    max(effect) AS peak_effect,
    max(layer) + 1 AS n_layers
FROM trace_effects
WHERE effect IS NOT NULL
GROUP BY run_id, window_size, fact_id;
