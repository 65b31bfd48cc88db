-- trace_effects: one tracing effect a layer (paper, section 4.1), kept as the cells are written: every analysis reads it,
-- and at 100 million cells making it anew took as long as all regressions together (bench/LOG.md).
-- Grain: one row a (run, fact, window size, layer); no index guards it, statements/ and the analysis' checks do.
-- Inputs: trace_cells, traces, runs (statements/add_trace_effects.sql).
-- Units: effect = largest fractional effect over the tokens, NULL where no token has one; peak_token_index = the token
-- it is found at, the earliest of equals; effect_last_subject = the effect at token subject_end - 1; effect_absolute = the
-- probability won there (p_restored - p_noised; methods noise and zero: lost, p_clean - p_restored; paper, Figure 14);
-- p_restored_max = largest p_restored over the tokens. approximate = some cell is an estimate; model_hash, module and
-- method are the run's, p_clean and p_noised the fact's (traces).
CREATE TABLE IF NOT EXISTS trace_effects (
    run_id              VARCHAR NOT NULL,
    protocol            VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id             VARCHAR NOT NULL,
    window_size         INTEGER NOT NULL CHECK (window_size >= 1),
    layer               INTEGER NOT NULL CHECK (layer >= 0),
    effect              DOUBLE,
    effect_last_subject DOUBLE,
    effect_absolute     DOUBLE  CHECK (effect_absolute BETWEEN -1.001 AND 1.001),
    peak_token_index    INTEGER,
    p_restored_max      DOUBLE,
    approximate         BOOLEAN NOT NULL,
    p_clean             DOUBLE,
    p_noised            DOUBLE,
    model_hash          VARCHAR NOT NULL,
    module              VARCHAR NOT NULL,
    method              VARCHAR NOT NULL
);
