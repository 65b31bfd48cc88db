-- Rows that the batch must not have, since mass_prompts has no index to refuse them: a key twice, and prompts of a fact
-- that the batch does not score.
SELECT fact_id, 'has a prompt twice in its batch' AS reason
FROM batch_mass_prompts
GROUP BY n_edits, fact_id, kind, prompt_index
HAVING count(*) > 1
UNION ALL
SELECT fact_id, 'has prompts of an edit that is not in its batch'
FROM batch_mass_prompts
ANTI JOIN batch_mass_edits USING (n_edits, fact_id)
LIMIT 1;
