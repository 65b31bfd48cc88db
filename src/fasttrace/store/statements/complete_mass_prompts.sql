-- Prompts of the store get what a judge says of them in another store: a verdict where there is none, and else the
-- error of a judge that failed.
UPDATE mass_prompts AS prompt
SET judged_after = other.judged_after, judge_error = other.judge_error
FROM batch_mass_prompts AS other
WHERE prompt.run_id = other.run_id AND prompt.n_edits = other.n_edits AND prompt.fact_id = other.fact_id
  AND prompt.kind = other.kind AND prompt.prompt_index = other.prompt_index
  AND prompt.judged_after IS NULL
  AND (other.judged_after IS NOT NULL OR prompt.judge_error IS NULL AND other.judge_error IS NOT NULL);
