-- 13: turns a store of schema version 12 into one of version 13, where edits name the experts that they change.
ALTER TABLE edits ADD COLUMN experts VARCHAR;
UPDATE store_schema SET version = 13;
