UPDATE runs
SET seconds = seconds + $seconds, flops = CASE WHEN $flops IS NULL THEN flops ELSE coalesce(flops, 0) + $flops END
WHERE run_id = $run_id;
