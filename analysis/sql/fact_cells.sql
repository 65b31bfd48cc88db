-- fact_cells: the tracing grids of the given facts.
-- Grain: one row per (run, fact, window_size, token_index, layer). Parameter: fact_ids = list of fact ids.
-- Inputs: trace_cells. Units: p_restored and p_restored_sem are probabilities; effect = fraction of
-- p_clean - p_noised, NULL where the noise did not lower p(o_true). Layers and tokens count from 0.
SELECT run_id, fact_id, window_size, token_index, token, layer, p_restored, p_restored_sem, effect
FROM trace_cells
WHERE fact_id IN (SELECT unnest($fact_ids))
ORDER BY run_id, fact_id, window_size, token_index, layer;
