-- The columns of every primary key.
SELECT table_name, constraint_column_names
FROM duckdb_constraints()
WHERE database_name = current_database() AND schema_name = 'main' AND constraint_type = 'PRIMARY KEY';
