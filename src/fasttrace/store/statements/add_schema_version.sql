INSERT INTO store_schema BY NAME
SELECT $version AS version, $fasttrace_version AS fasttrace_version, $created_at AS created_at;
