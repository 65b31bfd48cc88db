-- peak_layers: the layer at which each fact's tracing effect is largest (paper, Figure 1).
-- Grain: one row per (tracing run, window_size, fact_id). Facts whose effect is NULL at every layer have no row.
-- Inputs: fact_peaks, trace_runs. Units: peak_layer counts from 0 and is the lowest layer of equal effects; n_layers =
-- highest traced layer + 1; peak_effect = fraction of the lost metric; localization, metric, tokens and trace_run as in
-- trace_runs.
SELECT
    run.model,
    run.protocol,
    run.module,
    run.localization,
    run.metric,
    run.tokens,
    peak.window_size,
    run.trace_run,
    peak.run_id AS trace_run_id,
    peak.fact_id,
    peak.peak_layer,
    peak.peak_effect,
    peak.n_layers
FROM fact_peaks AS peak
JOIN trace_runs AS run ON run.run_id = peak.run_id
ORDER BY
    run.model, run.protocol, run.module, run.localization, run.metric, run.tokens, peak.window_size, trace_run_id,
    peak.fact_id;
