SELECT DISTINCT fact_id, layer FROM edits WHERE run_id = $run_id;
