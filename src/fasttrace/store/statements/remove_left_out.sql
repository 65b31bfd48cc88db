DELETE FROM facts_left_out WHERE source = $source;
