-- mean_effect: the mean tracing effect at each layer.
-- Grain: one row per (tracing run, window_size, layer). Inputs: trace_effects, trace_runs.
-- Units: mean_effect, sem_effect = fraction of the lost metric over the n facts whose effect is not NULL; sem_effect is
-- NULL for one fact. localization, metric, tokens and trace_run as in trace_runs. Layers count from 0.
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
    run.module,
    run.localization,
    run.metric,
    run.tokens,
    means.window_size,
    run.trace_run,
    means.run_id AS trace_run_id,
    means.layer,
    means.n,
    means.mean_effect,
    means.sem_effect
FROM means
JOIN trace_runs AS run ON run.run_id = means.run_id
ORDER BY
    run.model, run.protocol, run.module, run.localization, run.metric, run.tokens, means.window_size, trace_run_id,
    means.layer;
