-- Sets what a judge says now of a run's texts that it had failed to judge.
UPDATE edit_prompts AS prompt
SET judged_after = said.judged_after, judge_error = said.judge_error
FROM batch_judgements AS said
WHERE prompt.run_id = $run_id AND prompt.judge_error IS NOT NULL
  AND prompt.prompt = said.prompt AND prompt.answers = said.answers AND prompt.generated_after = said.generated_after;
