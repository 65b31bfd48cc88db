-- trace_routing: where a mixture of experts sends each token, for runs with the setting keep_routing.
-- Grain: one row per (run, fact, pass, token, layer, expert), for the experts that the router chooses.
-- Inputs: the `routing` of ft.trace.
-- Units: sample = number of the corrupted pass, NULL for the clean pass; a corrupted pass has rows from its first
-- corrupted token on, because earlier tokens are those of the clean pass; weight = factor of the expert's output.
-- No index: statements/add_trace_routing.sql and guard_trace_routing.sql make sure that no row is added twice.
CREATE TABLE IF NOT EXISTS trace_routing (
    run_id      VARCHAR NOT NULL,
    protocol    VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id     VARCHAR NOT NULL,
    sample      INTEGER CHECK (sample >= 0),
    token_index INTEGER NOT NULL CHECK (token_index >= 0),
    layer       INTEGER NOT NULL CHECK (layer >= 0),
    expert      INTEGER NOT NULL CHECK (expert >= 0),
    weight      DOUBLE  NOT NULL
);
