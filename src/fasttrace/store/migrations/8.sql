-- 8: turns a store of schema version 7 into one of version 8, where facts have counterfactuals, cells have heads, and
-- traces have logit differences and other metrics (NULL in stored rows).
ALTER TABLE facts ADD COLUMN counterfactual_subject VARCHAR[];
ALTER TABLE facts ADD COLUMN counterfactual_prompt VARCHAR[];
ALTER TABLE traces ADD COLUMN p_false_clean DOUBLE;
ALTER TABLE traces ADD COLUMN p_false_noised DOUBLE;
ALTER TABLE traces ADD COLUMN logit_diff_clean DOUBLE;
ALTER TABLE traces ADD COLUMN logit_diff_noised DOUBLE;
ALTER TABLE traces ADD COLUMN logprob_clean DOUBLE;
ALTER TABLE traces ADD COLUMN logprob_noised DOUBLE;
ALTER TABLE traces ADD COLUMN kl_noised DOUBLE;
ALTER TABLE traces ADD COLUMN counterfactuals VARCHAR[];
ALTER TABLE trace_cells ADD COLUMN head INTEGER;
ALTER TABLE trace_cells ADD COLUMN p_false_restored DOUBLE;
ALTER TABLE trace_cells ADD COLUMN p_false_sem DOUBLE;
ALTER TABLE trace_cells ADD COLUMN logit_diff_restored DOUBLE;
ALTER TABLE trace_cells ADD COLUMN logit_diff_sem DOUBLE;
ALTER TABLE trace_cells ADD COLUMN logprob_restored DOUBLE;
ALTER TABLE trace_cells ADD COLUMN logprob_sem DOUBLE;
ALTER TABLE trace_cells ADD COLUMN kl_restored DOUBLE;
ALTER TABLE trace_cells ADD COLUMN kl_sem DOUBLE;
ALTER TABLE trace_samples ADD COLUMN head INTEGER;
ALTER TABLE trace_samples ADD COLUMN logit_diff_restored DOUBLE;
UPDATE store_schema SET version = 8;
