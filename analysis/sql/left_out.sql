-- left_out: how many facts were left out for each reason.
-- Grain: one row per (model, protocol, step, reason).
-- Inputs: traces, known, runs.
-- Units: facts = number of different facts; step 'effect' = facts that were traced but have no fractional effect.
WITH reasons AS (
    SELECT run_id, fact_id, 'tracing' AS step, reason FROM traces WHERE NOT kept
    UNION ALL
    SELECT run_id, fact_id, 'effect' AS step, 'the noise did not lower p(o_true)' AS reason
    FROM traces
    WHERE kept AND protocol = 'paper' AND p_noised >= p_clean
    UNION ALL
    SELECT run_id, fact_id, 'knowledge test' AS step, coalesce(reason, 'o_true is not in the model''s continuation') AS reason
    FROM known
    WHERE NOT known
)
SELECT run.model, run.protocol, reasons.step, reasons.reason, count(DISTINCT reasons.fact_id) AS facts
FROM reasons
JOIN runs AS run ON run.run_id = reasons.run_id
GROUP BY run.model, run.protocol, reasons.step, reasons.reason
ORDER BY run.model, run.protocol, reasons.step, facts DESC, reasons.reason;
