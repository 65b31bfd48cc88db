-- edits: the scores of one edit of one fact at one layer (paper, section 3.4).
-- Grain: one row per (run, fact, problem, method, layer). Inputs: the `scores` of ft.edit.
-- Units: rewrite, paraphrase, neighborhood, essence, overall are scores, 1 = fully successful, NULL where undefined;
-- neighborhood is of o_false where the fact has one (protocol 'released': of the edit's target); p_* are probabilities
-- (of the edit's target; p_true_* of o_true); magnitude = p*(o_false) - p*(o_true); ppl_* = mean perplexity of the
-- essence texts; delta_norm = |delta| / |v0|, or the largest |change| of a weight (fine-tuning); denominator = u'k of
-- ROME's update; condition = condition number of the second moment solved with; target = the text edited in or out;
-- reason = why a fact was not edited (its scores are then NULL), or why its edit is zero (no token that predicts the
-- target sees the change; the scores are then those of the unedited model, and loss, denominator and condition are
-- NULL); window_size = the tracing window the edit is compared with; experts = those that the edit changes, by layer, as in
-- '5:3,7 6:shared', NULL where no layer that it changes has experts.
-- No index: statements/add_edits.sql and guard_edits.sql make sure that no row is added twice.
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
    ppl_before    DOUBLE  CHECK (ppl_before >= 1),
    ppl_after     DOUBLE  CHECK (ppl_after >= 1),
    delta_norm    DOUBLE  CHECK (delta_norm >= 0),
    denominator   DOUBLE,
    condition     DOUBLE  CHECK (condition >= 1),
    loss          DOUBLE,
    target        VARCHAR,
    reason        VARCHAR,
    experts       VARCHAR
);
