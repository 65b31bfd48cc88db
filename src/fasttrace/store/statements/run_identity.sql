-- The columns of a run that describe all its rows. No later batch may change them.
SELECT kind, model_hash, dtype, seed, protocol, fasttrace_version FROM runs WHERE run_id = $run_id;
