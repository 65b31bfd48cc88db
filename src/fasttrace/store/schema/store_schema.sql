-- store_schema: the schema version of the file.
-- Grain: one row per store. Inputs: written when the store is created. An upgrade raises the version. Units: none.
CREATE TABLE IF NOT EXISTS store_schema (
    version           INTEGER   NOT NULL PRIMARY KEY,
    fasttrace_version VARCHAR   NOT NULL,
    created_at        TIMESTAMP NOT NULL  -- UTC
);
