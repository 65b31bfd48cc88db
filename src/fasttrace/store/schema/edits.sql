-- edits: how one edit of one fact at one layer came out (paper, section 3.4).
-- Grain: one row a (run, fact, problem, method, layer). Inputs: the `scores` of ft.edit.
-- Units: rewrite, paraphrase, neighborhood, essence, overall are scores, 1 = wholly successful, NULL where
-- undefined; p_* are probabilities (of the edit's target; p_true_* of o_true); magnitude =
-- p*(o_false) - p*(o_true); delta_norm = |delta| / |v0|; denominator = u'k of the rank-one update;
-- window_size = the tracing window the edit is compared with.
CREATE TABLE IF NOT EXISTS edits (
    run_id        VARCHAR NOT NULL,
    protocol      VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id       VARCHAR NOT NULL,
    problem       VARCHAR NOT NULL,
    method        VARCHAR NOT NULL,
    layer         INTEGER NOT NULL CHECK (layer >= 0),
    window_size   INTEGER NOT NULL CHECK (window_size >= 1),
    rewrite       DOUBLE,
    paraphrase    DOUBLE,
    neighborhood  DOUBLE,
    essence       DOUBLE,
    overall       DOUBLE,
    p_before      DOUBLE  CHECK (p_before BETWEEN 0 AND 1.001),
    p_after       DOUBLE  CHECK (p_after BETWEEN 0 AND 1.001),
    p_true_before DOUBLE  CHECK (p_true_before BETWEEN 0 AND 1.001),
    p_true_after  DOUBLE  CHECK (p_true_after BETWEEN 0 AND 1.001),
    magnitude     DOUBLE,
    success       BOOLEAN,
    delta_norm    DOUBLE  CHECK (delta_norm >= 0),
    denominator   DOUBLE,
    loss          DOUBLE,
    PRIMARY KEY (run_id, fact_id, problem, method, layer)
);
