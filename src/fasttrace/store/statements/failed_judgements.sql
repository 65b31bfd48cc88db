-- The questions of a run that a judge has not answered: the prompt, the answers, and the text after the edit.
FROM (
    SELECT run_id, prompt, answers, generated_after, judge_error FROM edit_prompts
    UNION ALL
    SELECT run_id, prompt, answers, generated_after, judge_error FROM mass_prompts
)
SELECT DISTINCT prompt, answers, generated_after
WHERE run_id = $run_id AND judge_error IS NOT NULL AND answers IS NOT NULL
ORDER BY ALL;
