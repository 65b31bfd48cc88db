-- corruption_correlations: whether noise and counterfactual prompts find the same tracing effects.
-- Grain: one row per (noise run, counterfactual run, window_size, layer) of runs that differ in nothing but the
-- corruption and what follows from it (one model, protocol, module, heads, method, metric, tokens, scored, engine);
-- layer is NULL for all layers together.
-- Inputs: trace_effects, fact_peaks, trace_runs.
-- Units: pearson, spearman = correlation over facts of the two effects (of facts and layers, where layer is NULL), each
-- the largest over tokens; ties share their mean rank; n = pairs of which both effects are defined; mean_noise,
-- mean_counterfactual = their means; same_peak = share of facts whose largest effect is at the same layer in both,
-- given where layer is NULL.
WITH compared AS (
    SELECT
        noise.run_id AS noise_run_id, other.run_id AS counterfactual_run_id,
        noise.model, noise.protocol, noise.module, noise.method, noise.metric, noise.tokens
    FROM trace_runs AS noise
    JOIN trace_runs AS other
        ON noise.corruption = 'noise'
        AND other.corruption = 'counterfactual'
        AND other.model_hash = noise.model_hash
        AND other.protocol = noise.protocol
        AND other.module = noise.module
        AND other.heads IS NOT DISTINCT FROM noise.heads
        AND other.method = noise.method
        AND other.metric = noise.metric
        AND other.tokens IS NOT DISTINCT FROM noise.tokens
        AND other.scored = noise.scored
        AND other.engine = noise.engine
),
pairs AS (
    SELECT
        compared.*, a.window_size, a.layer, a.fact_id, a.effect AS by_noise, b.effect AS by_counterfactual
    FROM compared
    JOIN trace_effects AS a ON a.run_id = compared.noise_run_id
    JOIN trace_effects AS b
        ON b.run_id = compared.counterfactual_run_id
        AND b.fact_id = a.fact_id
        AND b.window_size = a.window_size
        AND b.layer = a.layer
    WHERE isfinite(a.effect) AND isfinite(b.effect)
),
laid AS (
    SELECT * FROM pairs
    UNION ALL
    SELECT * REPLACE (NULL AS layer) FROM pairs
),
ranked AS (
    SELECT
        *,
        rank() OVER (one ORDER BY by_noise)
        + (count(*) OVER (PARTITION BY noise_run_id, counterfactual_run_id, window_size, layer, by_noise) - 1) / 2.0
            AS noise_rank,
        rank() OVER (one ORDER BY by_counterfactual)
        + (
            count(*) OVER (PARTITION BY noise_run_id, counterfactual_run_id, window_size, layer, by_counterfactual) - 1
        ) / 2.0 AS counterfactual_rank
    FROM laid
    WINDOW one AS (PARTITION BY noise_run_id, counterfactual_run_id, window_size, layer)
),
peaks AS (
    SELECT
        compared.noise_run_id, compared.counterfactual_run_id, a.window_size,
        avg((a.peak_layer = b.peak_layer)::INTEGER) AS same_peak
    FROM compared
    JOIN fact_peaks AS a ON a.run_id = compared.noise_run_id
    JOIN fact_peaks AS b
        ON b.run_id = compared.counterfactual_run_id AND b.fact_id = a.fact_id AND b.window_size = a.window_size
    GROUP BY ALL
),
found AS (
    SELECT  -- sums in one order, so that they have the same bits each time
        model, protocol, module, method, metric, tokens, window_size, layer, noise_run_id, counterfactual_run_id,
        count(*) AS n,
        CASE WHEN stddev_pop(by_noise) > 0 AND stddev_pop(by_counterfactual) > 0
            THEN corr(by_noise, by_counterfactual ORDER BY fact_id, by_noise, by_counterfactual) END AS pearson,
        CASE WHEN stddev_pop(noise_rank) > 0 AND stddev_pop(counterfactual_rank) > 0
            THEN corr(noise_rank, counterfactual_rank ORDER BY fact_id, by_noise, by_counterfactual) END AS spearman,
        avg(by_noise ORDER BY fact_id, by_noise, by_counterfactual) AS mean_noise,
        avg(by_counterfactual ORDER BY fact_id, by_noise, by_counterfactual) AS mean_counterfactual
    FROM ranked
    GROUP BY ALL
)
SELECT
    found.model, found.protocol, found.module, found.method, found.metric, found.tokens, found.window_size, found.layer,
    found.n, found.pearson, found.spearman, found.mean_noise, found.mean_counterfactual,
    CASE WHEN found.layer IS NULL THEN peaks.same_peak END AS same_peak,
    found.noise_run_id, found.counterfactual_run_id
FROM found
LEFT JOIN peaks
    ON peaks.noise_run_id = found.noise_run_id
    AND peaks.counterfactual_run_id = found.counterfactual_run_id
    AND peaks.window_size = found.window_size
ORDER BY
    found.model, found.protocol, found.module, found.method, found.metric, found.tokens, found.noise_run_id,
    found.counterfactual_run_id, found.window_size, found.layer NULLS FIRST;
