-- Every relation of the file, with its numbers of rows (NULL for a view, which stores none) and columns.
SELECT table_name AS relation, 'table' AS kind, estimated_size AS n_rows, column_count AS n_columns
FROM duckdb_tables()
WHERE database_name = current_database() AND NOT internal
UNION ALL
SELECT view_name, 'view', NULL, column_count
FROM duckdb_views()
WHERE database_name = current_database() AND NOT internal
ORDER BY kind, relation;
