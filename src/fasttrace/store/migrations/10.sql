-- 10: turns a store of schema version 9 into one of version 10, where facts have probes, cases and other fields, scored
-- prompts have any kind and a score, and mass edits have their prompts.
ALTER TABLE facts ADD COLUMN probes STRUCT(kind VARCHAR, prompt VARCHAR, answers VARCHAR[], expect VARCHAR, "after" VARCHAR)[];
ALTER TABLE facts ADD COLUMN case_id VARCHAR;
ALTER TABLE facts ADD COLUMN case_edits INTEGER;
ALTER TABLE facts ADD COLUMN subject_found VARCHAR;
ALTER TABLE facts ADD COLUMN meta JSON;
-- DuckDB cannot change a CHECK, so the rows are copied into a new table.
CREATE TABLE edit_prompts_of_version_10 (
    run_id         VARCHAR NOT NULL,
    protocol       VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id        VARCHAR NOT NULL,
    problem        VARCHAR NOT NULL,
    method         VARCHAR NOT NULL,
    layer          INTEGER NOT NULL CHECK (layer >= 0),
    window_size    INTEGER NOT NULL CHECK (window_size >= 1),
    kind           VARCHAR NOT NULL CHECK (kind <> ''),
    prompt_index   INTEGER NOT NULL CHECK (prompt_index >= 0),
    prompt         VARCHAR NOT NULL,
    target_tokens  INTEGER NOT NULL CHECK (target_tokens >= 1),
    p_before       DOUBLE  CHECK (p_before BETWEEN 0 AND 1.001),
    p_after        DOUBLE  CHECK (p_after BETWEEN 0 AND 1.001),
    p_true_before  DOUBLE  CHECK (p_true_before BETWEEN 0 AND 1.001),
    p_true_after   DOUBLE  CHECK (p_true_after BETWEEN 0 AND 1.001),
    p_false_before DOUBLE  CHECK (p_false_before BETWEEN 0 AND 1.001),
    p_false_after  DOUBLE  CHECK (p_false_after BETWEEN 0 AND 1.001),
    expect         VARCHAR CHECK (expect IN ('changed', 'unchanged', 'true')),
    answer         VARCHAR,
    match_before   BOOLEAN,
    match_after    BOOLEAN,
    score          DOUBLE
);
INSERT INTO edit_prompts_of_version_10 BY NAME FROM edit_prompts;
DROP TABLE edit_prompts;
ALTER TABLE edit_prompts_of_version_10 RENAME TO edit_prompts;
CREATE TABLE mass_prompts (
    run_id         VARCHAR NOT NULL,
    protocol       VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    n_edits        INTEGER NOT NULL CHECK (n_edits >= 1),
    fact_id        VARCHAR NOT NULL,
    kind           VARCHAR NOT NULL CHECK (kind <> ''),
    prompt_index   INTEGER NOT NULL CHECK (prompt_index >= 0),
    prompt         VARCHAR NOT NULL,
    target_tokens  INTEGER NOT NULL CHECK (target_tokens >= 1),
    p_before       DOUBLE  CHECK (p_before BETWEEN 0 AND 1.001),
    p_after        DOUBLE  CHECK (p_after BETWEEN 0 AND 1.001),
    p_true_before  DOUBLE  CHECK (p_true_before BETWEEN 0 AND 1.001),
    p_true_after   DOUBLE  CHECK (p_true_after BETWEEN 0 AND 1.001),
    p_false_before DOUBLE  CHECK (p_false_before BETWEEN 0 AND 1.001),
    p_false_after  DOUBLE  CHECK (p_false_after BETWEEN 0 AND 1.001),
    expect         VARCHAR CHECK (expect IN ('changed', 'unchanged', 'true')),
    answer         VARCHAR,
    match_before   BOOLEAN,
    match_after    BOOLEAN,
    score          DOUBLE
);
CREATE TABLE facts_left_out (
    source VARCHAR NOT NULL,
    record VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    part   BOOLEAN NOT NULL,
    PRIMARY KEY (source, record, reason)
);
UPDATE store_schema SET version = 10;
