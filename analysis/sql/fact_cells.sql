-- fact_cells: the tracing grids of the given facts.
-- Grain: one row per (run, fact, window_size, token_index, layer, head). Parameter: fact_ids = list of fact ids.
-- Inputs: trace_cells. Units: p_restored, logit_diff_restored, logprob_restored and kl_restored, with their standard
-- errors, and effect as in trace_cells. Layers, tokens and heads count from 0.
SELECT
    run_id, fact_id, window_size, token_index, token, layer, head, p_restored, p_restored_sem, logit_diff_restored,
    logit_diff_sem, logprob_restored, logprob_sem, kl_restored, kl_sem, effect
FROM trace_cells
WHERE fact_id IN (SELECT unnest($fact_ids))
ORDER BY run_id, fact_id, window_size, token_index, layer, head;
