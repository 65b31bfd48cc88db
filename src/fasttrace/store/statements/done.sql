SELECT fact_id FROM traces WHERE run_id = $run_id
UNION
SELECT fact_id FROM known WHERE run_id = $run_id;
