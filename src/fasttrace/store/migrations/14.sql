-- 14: turns a store of schema version 13 into one of version 14, where edits name the experts that they change.
ALTER TABLE edits ADD COLUMN experts VARCHAR;
UPDATE store_schema SET version = 14;
