-- peak_layers: the layer at which each fact's tracing effect is largest (paper, Figure 1).
-- Grain: one row per (tracing run, window_size, fact_id). Facts whose effect is NULL at every layer have no row.
-- Inputs: trace_effects, runs, trace_settings, run_names. Units: peak_layer counts from 0 and is the lowest layer of
-- equal effects; n_layers = highest traced layer + 1; peak_effect = fraction of p_clean - p_noised. localization, tokens
-- = the tracing run's method and tokens; trace_run = its name (run_names).
WITH peaks AS (
    SELECT
        run_id, window_size, fact_id,
        first(layer ORDER BY effect DESC, layer) AS peak_layer,
        max(effect) AS peak_effect,
        max(layer) + 1 AS n_layers
    FROM trace_effects
    WHERE effect IS NOT NULL
    GROUP BY run_id, window_size, fact_id
)
SELECT
    run.model,
    run.protocol,
    asked.module,
    asked.method AS localization,
    asked.tokens,
    peaks.window_size,
    named.run_name AS trace_run,
    peaks.run_id AS trace_run_id,
    peaks.fact_id,
    peaks.peak_layer,
    peaks.peak_effect,
    peaks.n_layers
FROM peaks
JOIN runs AS run ON run.run_id = peaks.run_id
JOIN trace_settings AS asked ON asked.run_id = peaks.run_id
LEFT JOIN run_names AS named ON named.run_id = peaks.run_id
ORDER BY model, run.protocol, module, localization, asked.tokens, window_size, trace_run_id, fact_id;
