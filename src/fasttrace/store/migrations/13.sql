-- 13: turns a store of schema version 12 into one of version 13, where traces say which engine computed them. The engine
-- of every older row is NULL, which stands for the wavefront, the only one there was.
ALTER TABLE traces ADD COLUMN engine VARCHAR;
ALTER TABLE trace_cells ADD COLUMN engine VARCHAR;
ALTER TABLE trace_effects ADD COLUMN engine VARCHAR;
ALTER TABLE trace_samples ADD COLUMN engine VARCHAR;
UPDATE store_schema SET version = 13;
