-- layer_effects_off: stored effects of a layer that do not follow from its cells.
-- Grain: one row per wrong (run, fact, window size, layer). Inputs: trace_cells, traces, trace_effects.
-- Units: as in trace_effects; from_cells, last_from_cells = the effects computed from the cells. The stored or the
-- computed effects are NULL where that side lacks the layer.
WITH made AS (
    SELECT
        cell.run_id, cell.fact_id, cell.window_size, cell.layer,
        max(cell.effect) FILTER (WHERE isfinite(cell.effect)) AS from_cells,
        max(cell.effect) FILTER (WHERE isfinite(cell.effect) AND cell.token_index = trace.subject_end - 1)
            AS last_from_cells
    FROM trace_cells AS cell
    JOIN traces AS trace ON trace.run_id = cell.run_id AND trace.fact_id = cell.fact_id
    GROUP BY ALL
)
SELECT
    run_id, fact_id, window_size, layer,
    kept.effect, made.from_cells, kept.effect_last_subject, made.last_from_cells
FROM made
FULL JOIN trace_effects AS kept USING (run_id, fact_id, window_size, layer)
WHERE made.run_id IS NULL
   OR kept.run_id IS NULL
   OR kept.effect IS DISTINCT FROM made.from_cells
   OR kept.effect_last_subject IS DISTINCT FROM made.last_from_cells;
