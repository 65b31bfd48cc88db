-- mass_edits: the scores of every fact edited into one model, as the number of its edits grows.
-- Grain: one row per (run, number of edits, edited fact), and one per fact that was left out, at the last number.
-- Inputs: the `scores` of ft.mass_edit.
-- Units: n_edits = edits in the model when it was scored; position = the number of this fact's edit, from 1; scores,
-- p_*, magnitude, success and ppl_* as in edits, where "before" is the model without any edit; condition = condition
-- number of the last solve; reason = why a fact was left out (its position and scores are then NULL), or why an edited
-- fact had nothing to optimise.
CREATE TABLE IF NOT EXISTS mass_edits (
    run_id        VARCHAR NOT NULL,
    protocol      VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    n_edits       INTEGER NOT NULL CHECK (n_edits >= 1),
    fact_id       VARCHAR NOT NULL,
    position      INTEGER CHECK (position BETWEEN 1 AND n_edits),
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
    condition     DOUBLE  CHECK (condition >= 1),
    reason        VARCHAR,
    PRIMARY KEY (run_id, n_edits, fact_id),
    CHECK (position IS NOT NULL OR reason IS NOT NULL)
);
