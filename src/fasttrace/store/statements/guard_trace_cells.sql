-- Rows that the batch must not have, since trace_cells has no index to refuse them: a key twice, and cells of a fact
-- that the batch does not finish.
SELECT fact_id, 'has a cell twice in its batch' AS reason
FROM batch_trace_cells
GROUP BY fact_id, window_size, token_index, layer, head
HAVING count(*) > 1
UNION ALL
SELECT fact_id, 'has cells but no row of its own in its batch'
FROM batch_trace_cells
ANTI JOIN batch_traces USING (fact_id)
LIMIT 1;
