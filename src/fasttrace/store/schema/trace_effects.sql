-- trace_effects: one tracing effect a layer (paper, section 4.1).
-- Grain: one row a (run, fact, window size, layer). Inputs: trace_cells, traces, runs.
-- Units: effect = largest fractional effect over the tokens, NULL where no token has one;
-- peak_token_index = the token it is found at, the earliest of equals; effect_last_subject = the
-- effect at token subject_end - 1; p_restored_max = largest p_restored over the tokens.
-- approximate = some cell is an estimate; module and method say what the run restored or zeroed, and how (settings of the run).
CREATE VIEW IF NOT EXISTS trace_effects AS
SELECT
    cell.run_id,
    cell.protocol,
    cell.fact_id,
    cell.window_size,
    cell.layer,
    max(cell.effect) AS effect,
    max(cell.effect) FILTER (WHERE cell.token_index = trace.subject_end - 1) AS effect_last_subject,
    first(cell.token_index ORDER BY cell.effect DESC NULLS LAST, cell.token_index)
        FILTER (WHERE cell.effect IS NOT NULL) AS peak_token_index,
    max(cell.p_restored) AS p_restored_max,
    bool_or(cell.approximate) AS approximate,
    any_value(trace.p_clean) AS p_clean,
    any_value(trace.p_noised) AS p_noised,
    any_value(run.model_hash) AS model_hash,
    any_value(coalesce(run.settings ->> '$.module', 'mlp')) AS module,
    any_value(coalesce(run.settings ->> '$.method', 'denoise')) AS method
FROM trace_cells AS cell
JOIN traces AS trace ON trace.run_id = cell.run_id AND trace.fact_id = cell.fact_id
JOIN runs AS run ON run.run_id = cell.run_id
GROUP BY cell.run_id, cell.protocol, cell.fact_id, cell.window_size, cell.layer;
