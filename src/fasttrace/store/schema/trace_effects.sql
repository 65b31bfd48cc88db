-- trace_effects: one tracing effect per layer (paper, section 4.1). It is stored when the cells are written, because
-- every analysis reads it, and computing it from 100 million cells took as long as all regressions together
-- (bench/LOG.md).
-- Grain: one row per (run, fact, window size, layer). No index enforces it; statements/ and the analysis' checks do.
-- Inputs: trace_cells, traces, runs. statements/add_trace_effects.sql computes it.
-- Units: effect = largest fractional effect over the tokens and heads, NULL where none has one; peak_token_index = the
-- token with that effect, the earliest of equals; effect_last_subject = the effect at token subject_end - 1, the largest
-- over heads; effect_absolute = the probability gained there, p_restored - p_noised (methods noise and zero: the
-- probability lost, p_clean - p_restored; paper, Figure 14), also in runs of other metrics, the largest over heads;
-- p_restored_max = largest p_restored over the tokens and heads; approximate = whether some cell is an estimate;
-- model_hash, module and method are the run's, p_clean, p_noised and engine the fact's (traces).
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
    method              VARCHAR NOT NULL,
    engine              VARCHAR
);
