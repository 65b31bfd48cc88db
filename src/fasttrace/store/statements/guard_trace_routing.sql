-- Rows that the batch must not have, since trace_routing has no index to refuse them: a key twice, and routing of a
-- fact that the batch does not finish.
SELECT fact_id, 'has an expert twice at one token in its batch' AS reason
FROM batch_trace_routing
GROUP BY fact_id, sample, token_index, layer, expert
HAVING count(*) > 1
UNION ALL
SELECT fact_id, 'has routing but no row of its own in its batch'
FROM batch_trace_routing
ANTI JOIN batch_traces USING (fact_id)
LIMIT 1;
