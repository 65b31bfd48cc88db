UPDATE runs SET seconds = seconds + $seconds WHERE run_id = $run_id;
