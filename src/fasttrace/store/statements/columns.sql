-- Every column a connection can read, in order: of the stores' tables and views, and of the views made beside them.
SELECT database_name, schema_name, table_name, column_name, data_type
FROM duckdb_columns()
WHERE NOT internal AND schema_name IN ('main', 'once')
ORDER BY database_name, schema_name, table_name, column_index;
