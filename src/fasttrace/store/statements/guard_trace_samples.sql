-- Rows that the batch must not have, since trace_samples has no index to refuse them: a key twice, and samples of a
-- fact that the batch does not finish.
SELECT fact_id, 'has a sample twice in its batch' AS reason
FROM batch_trace_samples
GROUP BY fact_id, window_size, token_index, layer, head, sample
HAVING count(*) > 1
UNION ALL
SELECT fact_id, 'has samples but no row of its own in its batch'
FROM batch_trace_samples
ANTI JOIN batch_traces USING (fact_id)
LIMIT 1;
