-- 7: turns a store of schema version 6 into one of version 7, where facts have a target_prefix (NULL in stored ones).
ALTER TABLE facts ADD COLUMN target_prefix VARCHAR;
UPDATE store_schema SET version = 7;
