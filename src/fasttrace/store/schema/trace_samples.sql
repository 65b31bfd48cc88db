-- trace_samples: every noise sample of the tracing grid, for runs with the setting keep_samples.
-- Grain: one row per (run, fact, window size, token, layer, head, sample). Inputs: the `samples` of ft.trace.
-- Units: p_restored, logit_diff_restored as in trace_cells, which has their means; engine as in traces.
-- No index: statements/add_trace_samples.sql and guard_trace_samples.sql make sure that no row is added twice.
CREATE TABLE IF NOT EXISTS trace_samples (
    run_id      VARCHAR NOT NULL,
    protocol    VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id     VARCHAR NOT NULL,
    window_size INTEGER NOT NULL CHECK (window_size >= 1),
    token_index INTEGER NOT NULL CHECK (token_index >= 0),
    layer       INTEGER NOT NULL CHECK (layer >= 0),
    sample      INTEGER NOT NULL CHECK (sample >= 0),
    p_restored  DOUBLE  CHECK (p_restored BETWEEN 0 AND 1.001),
    head                INTEGER,
    logit_diff_restored DOUBLE,
    engine              VARCHAR
);
