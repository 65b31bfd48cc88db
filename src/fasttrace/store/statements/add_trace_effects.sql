-- Adds the effects of the batch's cells, for facts that this run has not finished. It runs before add_traces, which
-- marks them as finished.
INSERT INTO trace_effects BY NAME
SELECT
    $run_id AS run_id,
    $protocol AS protocol,
    cell.fact_id,
    cell.window_size,
    cell.layer,
    max(cell.effect) FILTER (WHERE isfinite(cell.effect)) AS effect,
    max(cell.effect) FILTER (WHERE isfinite(cell.effect) AND cell.token_index = fact.subject_end - 1)
        AS effect_last_subject,
    max(
        CASE
            WHEN $method IN ('noise', 'zero') THEN fact.p_clean - cell.p_restored
            ELSE cell.p_restored - fact.p_noised
        END
    ) FILTER (WHERE cell.token_index = fact.subject_end - 1) AS effect_absolute,
    first(cell.token_index ORDER BY cell.effect DESC, cell.token_index)
        FILTER (WHERE isfinite(cell.effect)) AS peak_token_index,
    max(cell.p_restored) AS p_restored_max,
    bool_or(cell.approximate) AS approximate,
    any_value(fact.p_clean) AS p_clean,
    any_value(fact.p_noised) AS p_noised,
    any_value(run.model_hash) AS model_hash,
    $module AS module,
    $method AS method,
    any_value(fact.engine) AS engine
FROM batch_trace_cells AS cell
JOIN batch_traces AS fact ON fact.fact_id = cell.fact_id
JOIN runs AS run ON run.run_id = $run_id
WHERE NOT EXISTS (FROM traces WHERE traces.run_id = $run_id AND traces.fact_id = cell.fact_id)
GROUP BY cell.fact_id, cell.window_size, cell.layer
ORDER BY cell.fact_id, cell.window_size, cell.layer;
