-- measured_cells: every cell in the metric of its run, beside the clean pass and the corrupted passes.
-- Grain: one row per cell, as in trace_cells. Inputs: trace_cells, measured_traces.
-- Units: m = the metric under the cell's intervention; the other m_* and settings as in measured_traces; effect as in
-- trace_cells.
SELECT
    cell.run_id,
    cell.protocol,
    cell.fact_id,
    cell.window_size,
    cell.token_index,
    cell.layer,
    cell.head,
    trace.method,
    trace.metric,
    CASE trace.metric
        WHEN 'probability' THEN cell.p_restored
        WHEN 'log-probability' THEN cell.logprob_restored
        WHEN 'logit-difference' THEN cell.logit_diff_restored
        WHEN 'kl' THEN cell.kl_restored
    END AS m,
    trace.m_clean,
    trace.m_noised,
    cell.effect
FROM trace_cells AS cell
JOIN measured_traces AS trace ON trace.run_id = cell.run_id AND trace.fact_id = cell.fact_id;
