-- trace_cells: the tracing grid.
-- Grain: one row a (run, fact, window size, token, layer). Inputs: the `cells` of ft.trace.
-- Units: p_restored = mean over noise samples of p(scored) under the cell's intervention, p_restored_sem its standard
-- error; effect = fraction of the lost probability restored (method noise: of the lost probability lost again; zero:
-- of p_clean deleted), NULL where the corruption lost none (p_noised >= p_clean). Several tokens at once are named by
-- the last. approximate = p_restored is an estimate; p_screened = the estimate, kept where the cell was verified.
-- Layers and tokens count from 0.
-- No index: nothing is there twice because statements/add_trace_cells.sql and guard_trace_cells.sql see to it.
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
