-- peak_counts: how many facts have their largest tracing effect at each layer (paper, Figures 1 and 11).
-- Grain: one row per (tracing run, window_size, layer), including layers without a fact. Inputs: trace_effects, runs.
-- Units: facts = facts that peak at the layer; of equal effects the lowest layer counts; of_facts = facts with any
-- effect. Layers count from 0.
WITH peaks AS (
    SELECT run_id, window_size, fact_id, first(layer ORDER BY effect DESC, layer) AS layer
    FROM trace_effects
    WHERE effect IS NOT NULL
    GROUP BY run_id, window_size, fact_id
),
grids AS (
    SELECT DISTINCT run_id, protocol, module, method, window_size, layer
    FROM trace_effects
    WHERE effect IS NOT NULL
)
SELECT
    run.model,
    grids.protocol,
    grids.module,
    grids.method AS localization,
    grids.window_size,
    grids.run_id AS trace_run_id,
    grids.layer,
    count(peaks.fact_id) AS facts,
    sum(count(peaks.fact_id)) OVER (PARTITION BY grids.run_id, grids.window_size)::BIGINT AS of_facts
FROM grids
JOIN runs AS run ON run.run_id = grids.run_id
LEFT JOIN peaks ON peaks.run_id = grids.run_id AND peaks.window_size = grids.window_size AND peaks.layer = grids.layer
GROUP BY run.model, grids.protocol, grids.module, grids.method, grids.window_size, grids.run_id, grids.layer
ORDER BY model, grids.protocol, grids.module, localization, grids.window_size, trace_run_id, grids.layer;
