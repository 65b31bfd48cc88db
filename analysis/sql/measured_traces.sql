-- measured_traces: the clean pass and the corrupted passes of every trace in the metric of its run.
-- Grain: one row per (tracing run, fact), as in traces, of the facts that were kept. Inputs: traces, trace_runs.
-- Units: m_clean, m_noised = the metric of the clean pass and its mean over the corrupted passes (NULL for method
-- zero): a probability, log-probability (nats), logit difference, or KL divergence from the clean pass (nats), whose
-- m_clean is 0; hurt = whether the corruption changed the metric, and lowered it if it is the probability; effects are
-- shares of the change. NULL for method zero. method, corruption, metric = the run's settings.
SELECT
    trace.run_id,
    trace.protocol,
    trace.fact_id,
    run.method,
    run.corruption,
    run.metric,
    CASE run.metric
        WHEN 'probability' THEN trace.p_clean
        WHEN 'log-probability' THEN trace.logprob_clean
        WHEN 'logit-difference' THEN trace.logit_diff_clean
        WHEN 'kl' THEN 0
    END AS m_clean,
    CASE run.metric
        WHEN 'probability' THEN trace.p_noised
        WHEN 'log-probability' THEN trace.logprob_noised
        WHEN 'logit-difference' THEN trace.logit_diff_noised
        WHEN 'kl' THEN trace.kl_noised
    END AS m_noised,
    CASE run.metric
        WHEN 'probability' THEN m_noised < m_clean
        ELSE abs(m_clean - m_noised) > 1e-6 * greatest(1, abs(m_clean), abs(m_noised))
    END AS hurt
FROM traces AS trace
JOIN trace_runs AS run ON run.run_id = trace.run_id
WHERE trace.kept;
