-- known: whether a model knows a fact.
-- Grain: one row per (run, fact). Inputs: the `verdicts` of ft.check_known.
-- Units: p_true is a probability; continuation = the greedy text that the verdict is based on;
-- reason = why a fact is not known (NULL where it is).
CREATE TABLE IF NOT EXISTS known (
    run_id            VARCHAR NOT NULL,
    protocol          VARCHAR CHECK (protocol IN ('paper', 'released')),
    fact_id           VARCHAR NOT NULL,
    known             BOOLEAN NOT NULL,
    p_true            DOUBLE  CHECK (p_true BETWEEN 0 AND 1.001),
    p_first_token_top BOOLEAN,
    continuation      VARCHAR,
    reason            VARCHAR,
    PRIMARY KEY (run_id, fact_id)
);
