-- What no index of edits would refuse: a key twice in the batch.
SELECT fact_id, 'has an edit twice in its batch' AS reason
FROM batch_edits
GROUP BY fact_id, problem, method, layer
HAVING count(*) > 1
LIMIT 1;
