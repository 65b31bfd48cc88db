-- 6: turns a store of schema version 5 into one of version 6, where mass_edits.landed is called n_edits.
-- DuckDB cannot rename a column that a key or a CHECK uses, so the rows are copied into a new table.
CREATE TABLE mass_edits_of_version_6 (
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
INSERT INTO mass_edits_of_version_6 BY NAME SELECT * RENAME (landed AS n_edits) FROM mass_edits;
DROP TABLE mass_edits;
ALTER TABLE mass_edits_of_version_6 RENAME TO mass_edits;
UPDATE store_schema SET version = 6;
