-- all_runs: every run of the store, oldest first.
-- Grain: one row per run. Inputs: runs. Units: seconds of compute; created_at in UTC.
SELECT * FROM runs ORDER BY created_at, run_id;
