-- window_peaks: how the size of the window changes the largest tracing effect and its layer.
-- Grain: one row per (tracing run, window_size). Inputs: fact_peaks, trace_runs.
-- Units: mean_peak, sem_peak = mean over n facts of the largest effect over tokens and layers, a fraction of the lost
-- metric, and its standard error; above_one = share of facts whose largest effect is above 1; mean_layer,
-- median_layer = of the layers of these effects; most_layer, most_share = the layer that most facts have, and their
-- share. Layers count from 0.
WITH layers AS (
    SELECT run_id, window_size, peak_layer, count(*) AS n
    FROM fact_peaks
    GROUP BY ALL
),
most AS (
    SELECT run_id, window_size, first(peak_layer ORDER BY n DESC, peak_layer) AS most_layer, max(n) AS most_n
    FROM layers
    GROUP BY ALL
)
SELECT
    run.model,
    run.protocol,
    run.module,
    run.localization,
    run.metric,
    run.tokens,
    run.trace_run,
    peak.run_id AS trace_run_id,
    peak.window_size,
    count(*) AS n,
    avg(peak.peak_effect ORDER BY peak.fact_id) AS mean_peak,
    stddev_samp(peak.peak_effect ORDER BY peak.fact_id) / sqrt(count(*)) AS sem_peak,
    avg((peak.peak_effect > 1)::INTEGER) AS above_one,
    avg(peak.peak_layer) AS mean_layer,
    median(peak.peak_layer) AS median_layer,
    any_value(most.most_layer) AS most_layer,
    any_value(most.most_n) / count(*) AS most_share
FROM fact_peaks AS peak
JOIN trace_runs AS run ON run.run_id = peak.run_id
JOIN most ON most.run_id = peak.run_id AND most.window_size = peak.window_size
GROUP BY ALL
ORDER BY model, run.protocol, module, localization, metric, run.tokens, trace_run_id, window_size;
