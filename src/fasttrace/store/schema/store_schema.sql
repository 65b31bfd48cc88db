-- store_schema: which version of these relations the file holds.
-- Grain: one row a store. Inputs: written once, when the store is made. Units: none.
CREATE TABLE IF NOT EXISTS store_schema (
    version           INTEGER   NOT NULL PRIMARY KEY,
    fasttrace_version VARCHAR   NOT NULL,
    created_at        TIMESTAMP NOT NULL  -- UTC
);
