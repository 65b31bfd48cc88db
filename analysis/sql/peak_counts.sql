-- peak_counts: how many facts have their largest tracing effect at each layer (paper, Figures 1 and 11).
-- Grain: one row per (tracing run, window_size, layer), including layers without a fact.
-- Inputs: trace_effects, runs, trace_settings, run_names.
-- Units: facts = facts that peak at the layer; of equal effects the lowest layer counts; of_facts = facts with any
-- effect. localization, tokens = the tracing run's method and tokens; trace_run = its name (run_names). Layers count
-- from 0.
WITH peaks AS (
    SELECT run_id, window_size, fact_id, first(layer ORDER BY effect DESC, layer) AS layer
    FROM trace_effects
    WHERE effect IS NOT NULL
    GROUP BY run_id, window_size, fact_id
),
counts AS (
    SELECT grids.run_id, grids.window_size, grids.layer, count(peaks.fact_id) AS facts
    FROM (SELECT DISTINCT run_id, window_size, layer FROM trace_effects WHERE effect IS NOT NULL) AS grids
    LEFT JOIN peaks
        ON peaks.run_id = grids.run_id AND peaks.window_size = grids.window_size AND peaks.layer = grids.layer
    GROUP BY grids.run_id, grids.window_size, grids.layer
)
SELECT
    run.model,
    run.protocol,
    asked.module,
    asked.method AS localization,
    asked.tokens,
    counts.window_size,
    named.run_name AS trace_run,
    counts.run_id AS trace_run_id,
    counts.layer,
    counts.facts,
    sum(counts.facts) OVER (PARTITION BY counts.run_id, counts.window_size)::BIGINT AS of_facts
FROM counts
JOIN runs AS run ON run.run_id = counts.run_id
JOIN trace_settings AS asked ON asked.run_id = counts.run_id
LEFT JOIN run_names AS named ON named.run_id = counts.run_id
ORDER BY model, run.protocol, module, localization, asked.tokens, window_size, trace_run_id, layer;
