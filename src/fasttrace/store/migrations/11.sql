-- 11: turns a store of schema version 10 into one of version 11, where scored prompts have generated text.
ALTER TABLE edit_prompts ADD COLUMN generated_before VARCHAR;
ALTER TABLE edit_prompts ADD COLUMN generated_after VARCHAR;
ALTER TABLE edit_prompts ADD COLUMN exact_before BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN exact_after BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN prefix_before BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN prefix_after BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN judged_after BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN judge_error VARCHAR;
ALTER TABLE mass_prompts ADD COLUMN generated_before VARCHAR;
ALTER TABLE mass_prompts ADD COLUMN generated_after VARCHAR;
ALTER TABLE mass_prompts ADD COLUMN exact_before BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN exact_after BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN prefix_before BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN prefix_after BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN judged_after BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN judge_error VARCHAR;
UPDATE store_schema SET version = 11;
