-- Adds the run's row once. `seconds` starts at 0 and `flops` at NULL; both grow with every batch that adds rows.
INSERT INTO runs BY NAME
SELECT
    $run_id AS run_id, $kind AS kind, $model AS model, $model_hash AS model_hash, $dtype AS dtype,
    $device AS device, $seed AS seed, $protocol AS protocol, $settings AS settings,
    $fasttrace_version AS fasttrace_version, $torch_version AS torch_version,
    $created_at AS created_at, 0 AS seconds, NULL AS flops
WHERE NOT EXISTS (FROM runs WHERE run_id = $run_id);
