-- Every column that a connection can read, in order. Its own views are included beside the stores' tables and views.
SELECT database_name, schema_name, table_name, column_name, data_type
FROM duckdb_columns()
WHERE NOT internal AND schema_name IN ('main', 'once')
ORDER BY database_name, schema_name, table_name, column_index;
