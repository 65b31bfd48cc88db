-- effects_from_cells: the largest effect over tokens, made from all cells: what reading it from trace_effects saves.
-- Grain: one row, a sum over all (run, fact, window size, layer) so that nothing is carried out of the query.
-- Inputs: trace_cells, traces. Units: fractions of the lost probability.
WITH effects AS (
    SELECT
        cell.run_id, cell.fact_id, cell.window_size, cell.layer,
        max(cell.effect) AS effect,
        max(cell.effect) FILTER (WHERE cell.token_index = trace.subject_end - 1) AS effect_last_subject
    FROM trace_cells AS cell
    JOIN traces AS trace ON trace.run_id = cell.run_id AND trace.fact_id = cell.fact_id
    GROUP BY ALL
)
SELECT count(*) AS n, sum(effect) AS effect, sum(effect_last_subject) AS effect_last_subject FROM effects;
