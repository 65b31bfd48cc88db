-- rows_without_their_run: rows whose run is missing, or has another kind or protocol than the row.
-- Grain: one row per wrong (relation, run_id, protocol). Inputs: every relation that has a run_id, runs.
-- Units: n = number of rows; protocol is NULL for relations without a protocol.
WITH found AS (
    SELECT 'traces' AS relation, 'trace' AS kind, run_id, protocol, count(*) AS n FROM traces GROUP BY ALL
    UNION ALL
    SELECT 'trace_cells', 'trace', run_id, protocol, count(*) FROM trace_cells GROUP BY ALL
    UNION ALL
    SELECT 'trace_samples', 'trace', run_id, protocol, count(*) FROM trace_samples GROUP BY ALL
    UNION ALL
    SELECT 'trace_routing', 'trace', run_id, protocol, count(*) FROM trace_routing GROUP BY ALL
    UNION ALL
    SELECT 'trace_effects', 'trace', run_id, protocol, count(*) FROM trace_effects GROUP BY ALL
    UNION ALL
    SELECT 'edits', 'edit', run_id, protocol, count(*) FROM edits GROUP BY ALL
    UNION ALL
    SELECT 'edit_prompts', 'edit', run_id, protocol, count(*) FROM edit_prompts GROUP BY ALL
    UNION ALL
    SELECT 'mass_edits', 'mass', run_id, protocol, count(*) FROM mass_edits GROUP BY ALL
    UNION ALL
    SELECT 'mass_prompts', 'mass', run_id, protocol, count(*) FROM mass_prompts GROUP BY ALL
    UNION ALL
    SELECT 'mass_measures', 'mass', run_id, protocol, count(*) FROM mass_measures GROUP BY ALL
    UNION ALL
    SELECT 'mass_norms', 'mass', run_id, protocol, count(*) FROM mass_norms GROUP BY ALL
    UNION ALL
    SELECT 'mass_tasks', 'mass', run_id, protocol, count(*) FROM mass_tasks GROUP BY ALL
    UNION ALL
    SELECT 'known', 'facts', run_id, protocol, count(*) FROM known GROUP BY ALL
    UNION ALL
    SELECT 'moments', 'moments', run_id, NULL, count(*) FROM moments GROUP BY ALL
    UNION ALL
    SELECT 'benches', 'bench', run_id, NULL, count(*) FROM benches GROUP BY ALL
)
SELECT found.relation, found.run_id, found.protocol, found.n
FROM found
LEFT JOIN runs AS run ON run.run_id = found.run_id
WHERE run.run_id IS NULL
   OR run.kind <> found.kind
   OR (found.relation NOT IN ('moments', 'benches') AND run.protocol IS DISTINCT FROM found.protocol);
