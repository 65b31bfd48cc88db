-- mean_effect: the mean tracing effect at each layer.
-- Grain: one row per (tracing run, window_size, layer). Inputs: trace_effects, runs, trace_settings, run_names.
-- Units: mean_effect, sem_effect = fraction of p_clean - p_noised over the n facts whose effect is not NULL;
-- sem_effect is NULL for one fact. localization, tokens = the tracing run's method and tokens; trace_run = its name
-- (run_names). Layers count from 0.
WITH means AS (
    SELECT
        run_id, window_size, layer,
        count(*) AS n,
        avg(effect) AS mean_effect,
        stddev_samp(effect) / sqrt(count(*)) AS sem_effect
    FROM trace_effects
    WHERE effect IS NOT NULL
    GROUP BY run_id, window_size, layer
)
SELECT
    run.model,
    run.protocol,
    asked.module,
    asked.method AS localization,
    asked.tokens,
    means.window_size,
    named.run_name AS trace_run,
    means.run_id AS trace_run_id,
    means.layer,
    means.n,
    means.mean_effect,
    means.sem_effect
FROM means
JOIN runs AS run ON run.run_id = means.run_id
JOIN trace_settings AS asked ON asked.run_id = means.run_id
LEFT JOIN run_names AS named ON named.run_id = means.run_id
ORDER BY model, run.protocol, module, localization, asked.tokens, window_size, trace_run_id, layer;
