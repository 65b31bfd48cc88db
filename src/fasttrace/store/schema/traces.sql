-- traces: the results of a tracing run for a fact as a whole.
-- Grain: one row per (run, fact), including the facts that were left out. Inputs: the `facts` of ft.trace.
-- Units: p_clean, p_noised = p(scored), a probability, p_noised NULL without noise; scored = the text that is scored
-- after the prompt (o_true, its first token, or the first token of the model's answer); subject tokens are
-- [subject_begin, subject_end); sigma = standard deviation of the noise on the embeddings; reason = why the fact was
-- left out, NULL where it was kept; rank_correlation = Spearman's correlation of estimated and exact cells, where a
-- screening run verified some.
CREATE TABLE IF NOT EXISTS traces (
    run_id        VARCHAR NOT NULL,
    protocol      VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id       VARCHAR NOT NULL,
    prompt        VARCHAR NOT NULL,
    subject       VARCHAR NOT NULL,
    relation      VARCHAR,
    target_true   VARCHAR NOT NULL,
    target_false  VARCHAR,
    p_clean       DOUBLE  CHECK (p_clean BETWEEN 0 AND 1.001),
    p_noised      DOUBLE  CHECK (p_noised BETWEEN 0 AND 1.001),
    tokens        VARCHAR[],
    subject_begin INTEGER CHECK (subject_begin >= 0),
    subject_end   INTEGER CHECK (subject_end >= 0),
    sigma         DOUBLE  CHECK (sigma >= 0),
    kept          BOOLEAN NOT NULL,
    reason        VARCHAR,
    scored        VARCHAR,
    rank_correlation DOUBLE CHECK (rank_correlation BETWEEN -1.001 AND 1.001),
    PRIMARY KEY (run_id, fact_id),
    CHECK (kept OR reason IS NOT NULL)
);
