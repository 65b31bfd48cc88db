SELECT max(version) FROM store_schema;
