-- mean_effect: the mean tracing effect at each layer.
-- Grain: one row per (tracing run, window_size, layer). Inputs: trace_effects, runs.
-- Units: mean_effect, sem_effect = fraction of p_clean - p_noised over the n facts whose effect is not NULL;
-- sem_effect is NULL for one fact. localization = the tracing run's method. Layers count from 0.
SELECT
    run.model,
    effect.protocol,
    effect.module,
    effect.method AS localization,
    effect.window_size,
    effect.run_id AS trace_run_id,
    effect.layer,
    count(*) AS n,
    avg(effect.effect) AS mean_effect,
    stddev_samp(effect.effect) / sqrt(count(*)) AS sem_effect
FROM trace_effects AS effect
JOIN runs AS run ON run.run_id = effect.run_id
WHERE effect.effect IS NOT NULL
GROUP BY run.model, effect.protocol, effect.module, effect.method, effect.window_size, effect.run_id, effect.layer
ORDER BY model, effect.protocol, module, localization, window_size, trace_run_id, layer;
