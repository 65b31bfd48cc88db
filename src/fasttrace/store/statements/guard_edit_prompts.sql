-- Rows that the batch must not have, since edit_prompts has no index to refuse them: a key twice, and prompts of an
-- edit that the batch does not finish.
SELECT fact_id, 'has a prompt twice in its batch' AS reason
FROM batch_edit_prompts
GROUP BY fact_id, problem, method, layer, kind, prompt_index
HAVING count(*) > 1
UNION ALL
SELECT fact_id, 'has prompts of an edit that is not in its batch'
FROM batch_edit_prompts
ANTI JOIN batch_edits USING (fact_id, problem, method, layer)
LIMIT 1;
