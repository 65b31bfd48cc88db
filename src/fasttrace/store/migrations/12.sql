-- 12: turns a store of schema version 11 into one of version 12, where scored prompts have the texts of their answers.
ALTER TABLE edit_prompts ADD COLUMN answers VARCHAR[];
ALTER TABLE mass_prompts ADD COLUMN answers VARCHAR[];
UPDATE store_schema SET version = 12;
