-- 15: turns a store of schema version 14 into one of version 15, which may have where a mixture of experts sends each
-- token.
CREATE TABLE trace_routing (
    run_id      VARCHAR NOT NULL,
    protocol    VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id     VARCHAR NOT NULL,
    sample      INTEGER CHECK (sample >= 0),
    token_index INTEGER NOT NULL CHECK (token_index >= 0),
    layer       INTEGER NOT NULL CHECK (layer >= 0),
    expert      INTEGER NOT NULL CHECK (expert >= 0),
    weight      DOUBLE  NOT NULL
);
UPDATE store_schema SET version = 15;
