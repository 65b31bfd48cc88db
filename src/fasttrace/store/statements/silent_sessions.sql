-- Sessions of a server whose last statement, of a transaction that writes, has ended.
SELECT connection_id, query_started_at
FROM quack_active_connections()
WHERE state = 'finished' AND starts_with(query, $prefix);
