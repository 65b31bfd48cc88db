-- cells_without_a_trace: cells, samples, routing and effects of a fact that the run did not trace or left out.
-- Grain: one row per wrong (relation, run, fact). Inputs: trace_cells, trace_samples, trace_routing,
-- trace_effects, traces.
-- Units: none.
WITH found AS (
    SELECT DISTINCT 'trace_cells' AS relation, run_id, fact_id FROM trace_cells
    UNION ALL
    SELECT DISTINCT 'trace_samples', run_id, fact_id FROM trace_samples
    UNION ALL
    SELECT DISTINCT 'trace_routing', run_id, fact_id FROM trace_routing
    UNION ALL
    SELECT DISTINCT 'trace_effects', run_id, fact_id FROM trace_effects
)
SELECT found.*
FROM found
ANTI JOIN traces AS trace
    ON trace.run_id = found.run_id AND trace.fact_id = found.fact_id AND trace.kept;
