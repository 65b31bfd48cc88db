-- What every row of the run says through it, and no later batch may change.
SELECT kind, model_hash, dtype, seed, protocol, fasttrace_version FROM runs WHERE run_id = $run_id;
