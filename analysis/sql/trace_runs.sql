-- trace_runs: what every tracing run did, and the names by which it is told apart.
-- Grain: one row per tracing run. Inputs: runs, trace_settings, run_names.
-- Units: localization = how the run localizes facts: its method with noise or zeros (denoise, noise, zero,
-- attribution); with counterfactual prompts 'counterfactual' for denoise, and 'counterfactual-noise' or
-- 'counterfactual-attribution'; metric = what its effects are made of; module, heads, tokens, scored = its settings
-- (scored = what is scored); engine = what computed its passes; trace_run = its name (run_names).
SELECT
    asked.run_id,
    run.model,
    run.model_hash,
    run.protocol,
    asked.module,
    CASE
        WHEN asked.corruption = 'noise' THEN asked.method
        WHEN asked.method = 'denoise' THEN asked.corruption
        ELSE concat(asked.corruption, '-', asked.method)
    END AS localization,
    asked.metric,
    asked.tokens,
    asked.heads,
    asked.method,
    asked.corruption,
    asked.scored,
    asked.engine,
    named.run_name AS trace_run
FROM trace_settings AS asked
JOIN runs AS run ON run.run_id = asked.run_id
LEFT JOIN run_names AS named ON named.run_id = asked.run_id;
