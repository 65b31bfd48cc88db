-- peak_counts: how many facts have their largest tracing effect at each layer (paper, Figures 1 and 11).
-- Grain: one row per (tracing run, window_size, layer), including layers without a fact.
-- Inputs: trace_effects, fact_peaks, trace_runs.
-- Units: facts = facts that peak at the layer; of equal effects the lowest layer counts; of_facts = facts with any
-- effect. localization, metric, tokens and trace_run as in trace_runs. Layers count from 0.
WITH counts AS (
    SELECT grids.run_id, grids.window_size, grids.layer, count(peak.fact_id) AS facts
    FROM (SELECT DISTINCT run_id, window_size, layer FROM trace_effects WHERE effect IS NOT NULL) AS grids
    LEFT JOIN fact_peaks AS peak
        ON peak.run_id = grids.run_id AND peak.window_size = grids.window_size AND peak.peak_layer = grids.layer
    GROUP BY grids.run_id, grids.window_size, grids.layer
)
SELECT
    run.model,
    run.protocol,
    run.module,
    run.localization,
    run.metric,
    run.tokens,
    counts.window_size,
    run.trace_run,
    counts.run_id AS trace_run_id,
    counts.layer,
    counts.facts,
    sum(counts.facts) OVER (PARTITION BY counts.run_id, counts.window_size)::BIGINT AS of_facts
FROM counts
JOIN trace_runs AS run ON run.run_id = counts.run_id
ORDER BY
    run.model, run.protocol, run.module, run.localization, run.metric, run.tokens, counts.window_size, trace_run_id,
    counts.layer;
