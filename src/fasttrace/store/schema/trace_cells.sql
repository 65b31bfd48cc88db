-- trace_cells: the tracing grid.
-- Grain: one row per (run, fact, window size, token, layer, head). Inputs: the `cells` of ft.trace.
-- Units: p_restored = mean over samples of p(scored) under the cell's intervention, p_restored_sem its standard error;
-- p_false_*, logit_diff_*, logprob_* and kl_* as in traces, each with its standard error; effect = fraction of the lost
-- metric (by default the probability) that the cell restores (method noise: fraction of it that the cell loses; method
-- zero: fraction of the clean pass's that the cell deletes). For the probability it is NULL where the corruption lost
-- none (p_noised >= p_clean; method zero: p_clean = 0; method denoise of protocol released: only where the denominator
-- is 0), for other metrics where the denominator is about 0. A cell of several tokens has the index of the last.
-- head = the attention head of module head, or the expert of module expert (a shared one comes last); NULL for other
-- modules and for all heads at once. approximate = whether p_restored is an estimate; p_screened = the estimate, kept
-- where the cell was verified. engine = as in traces. Layers, tokens, heads and experts count from 0.
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
    p_screened     DOUBLE  CHECK (p_screened BETWEEN 0 AND 1.001),
    head                INTEGER,
    p_false_restored    DOUBLE,
    p_false_sem         DOUBLE,
    logit_diff_restored DOUBLE,
    logit_diff_sem      DOUBLE,
    logprob_restored    DOUBLE,
    logprob_sem         DOUBLE,
    kl_restored         DOUBLE,
    kl_sem              DOUBLE,
    engine              VARCHAR
);
