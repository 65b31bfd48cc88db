-- trace_cells: the tracing grid.
-- Grain: one row per (run, fact, window size, token, layer). Inputs: the `cells` of ft.trace.
-- Units: p_restored = mean over noise samples of p(scored) under the cell's intervention, p_restored_sem its standard
-- error; effect = fraction of the lost probability that the cell restores (method noise: fraction of it that the cell
-- loses; method zero: fraction of p_clean that the cell deletes), NULL where the corruption lost none (p_noised >=
-- p_clean; method zero: p_clean = 0; method denoise of protocol released: only where the denominator is 0). A cell of
-- several tokens has the index of the last. approximate = whether p_restored is an estimate; p_screened = the estimate,
-- kept where the cell was verified.
-- Layers and tokens count from 0.
-- No index: statements/add_trace_cells.sql and guard_trace_cells.sql make sure that no row is added twice.
CREATE TABLE IF NOT EXISTS trace_cells (
    run_id         VARCHAR NOT NULL,
    protocol       VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id        VARCHAR NOT NULL,
    window_size    INTEGER NOT NULL CHECK (window_size >= 1),
    token_index    INTEGER NOT NULL CHECK (token_index >= 0),
    token          VARCHAR,
    layer          INTEGER NOT NULL CHECK (layer >= 0),
    p_restored     DOUBLE  CHECK (p_restored BETWEEN 0 AND 1.001),
    p_restored_sem DOUBLE  CHECK (p_restored_sem >= 0),
    effect         DOUBLE,
    approximate    BOOLEAN NOT NULL,
    p_screened     DOUBLE  CHECK (p_screened BETWEEN 0 AND 1.001)
);
