-- Rows that the batch must not have, since edits has no index to refuse them: a key twice.
SELECT fact_id, 'has an edit twice in its batch' AS reason
FROM batch_edits
GROUP BY fact_id, problem, method, layer
HAVING count(*) > 1
LIMIT 1;
