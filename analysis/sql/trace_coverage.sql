-- trace_coverage: how many tracing effects the store has.
-- Grain: one row per (tracing run, window_size) that has an effect. Inputs: trace_effects,
-- concentrated_facts, trace_runs.
-- Units: effects = number of layers' effects; concentrated = facts whose effect is concentrated in few layers.
SELECT
    run.model,
    run.module,
    run.localization,
    run.metric,
    run.tokens,
    effect.window_size,
    effect.run_id AS trace_run_id,
    count(effect.effect) AS effects,
    count(DISTINCT few.fact_id) AS concentrated
FROM trace_effects AS effect
JOIN trace_runs AS run ON run.run_id = effect.run_id
LEFT JOIN concentrated_facts AS few
    ON few.run_id = effect.run_id AND few.fact_id = effect.fact_id AND few.window_size = effect.window_size
WHERE effect.effect IS NOT NULL
GROUP BY ALL
ORDER BY ALL;
