-- store_schema: which version of these relations the file holds.
-- Grain: one row a store. Inputs: written when the store is made; an upgrade raises the version. Units: none.
CREATE TABLE IF NOT EXISTS store_schema (
    version           INTEGER   NOT NULL PRIMARY KEY,
    fasttrace_version VARCHAR   NOT NULL,
    created_at        TIMESTAMP NOT NULL  -- UTC
);
