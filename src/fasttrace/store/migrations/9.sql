-- 9: turns a store of schema version 8 into one of version 9, where counterfactuals are with the runs that they
-- corrupted (traces) and not with the facts.
ALTER TABLE facts DROP COLUMN counterfactual_subject;
ALTER TABLE facts DROP COLUMN counterfactual_prompt;
UPDATE store_schema SET version = 9;
