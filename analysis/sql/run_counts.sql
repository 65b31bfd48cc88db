-- run_counts: how many facts, cells and edits each run has.
-- Grain: one row per run. Inputs: runs, known, traces, trace_cells, edits, mass_edits.
-- Units: facts = facts given to the run, and kept = those that were known, traced or edited, both NULL for other
-- kinds of run; cells = cells of tracing grids; edits = rows of edits; layers = edited layers, counted from 0.
SELECT
    run.run_id,
    run.kind,
    run.model,
    run.protocol,
    CASE run.kind
        WHEN 'facts' THEN (SELECT count(*) FROM known WHERE known.run_id = run.run_id)
        WHEN 'trace' THEN (SELECT count(*) FROM traces WHERE traces.run_id = run.run_id)
        WHEN 'edit' THEN (SELECT count(DISTINCT edits.fact_id) FROM edits WHERE edits.run_id = run.run_id)
        WHEN 'mass' THEN (SELECT count(DISTINCT mass.fact_id) FROM mass_edits AS mass WHERE mass.run_id = run.run_id)
    END AS facts,
    CASE run.kind
        WHEN 'facts' THEN (SELECT count(*) FILTER (WHERE known.known) FROM known WHERE known.run_id = run.run_id)
        WHEN 'trace' THEN (SELECT count(*) FILTER (WHERE traces.kept) FROM traces WHERE traces.run_id = run.run_id)
        WHEN 'edit' THEN (SELECT count(DISTINCT edits.fact_id) FROM edits WHERE edits.run_id = run.run_id)
        WHEN 'mass' THEN (SELECT count(DISTINCT mass.fact_id) FROM mass_edits AS mass WHERE mass.run_id = run.run_id)
    END AS kept,
    (SELECT count(*) FROM trace_cells WHERE trace_cells.run_id = run.run_id) AS cells,
    (SELECT count(*) FROM edits WHERE edits.run_id = run.run_id) AS edits,
    (SELECT list(DISTINCT edits.layer ORDER BY edits.layer) FROM edits WHERE edits.run_id = run.run_id) AS layers
FROM runs AS run
ORDER BY run.created_at, run.run_id;
