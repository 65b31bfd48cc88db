-- left_out: how many facts were left out for each reason.
-- Grain: one row per (model, protocol, step, reason).
-- Inputs: traces, known, runs, measured_traces.
-- Units: facts = number of different facts; step 'effect' = facts that were traced but have no fractional effect. The
-- facts whose counterfactual prompts do not fit are one row; traces has the reason of each.
WITH reasons AS (
    SELECT
        run_id, fact_id, 'tracing' AS step,
        CASE
            WHEN starts_with(reason, 'counterfactual ') THEN 'no counterfactual prompt fits the tokens of the prompt'
            ELSE reason
        END AS reason
    FROM traces
    WHERE NOT kept
    UNION ALL
    SELECT
        run_id, fact_id, 'effect' AS step,
        concat(
            CASE corruption WHEN 'noise' THEN 'the noise' ELSE 'the counterfactuals' END,
            ' did not ',
            CASE metric
                WHEN 'probability' THEN 'lower p(o_true)'
                WHEN 'log-probability' THEN 'change log p(o_true)'
                WHEN 'logit-difference' THEN 'change the logit difference'
                WHEN 'kl' THEN 'change the next-token distribution'
            END
        ) AS reason
    FROM measured_traces
    WHERE NOT hurt AND (protocol = 'paper' OR metric <> 'probability')
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
