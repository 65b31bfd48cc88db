-- runs: every run, with all its settings that change a number.
-- Grain: one row per run. The same command gives the same run_id and continues the same row.
-- Inputs: the `run` of a result, written with the run's first batch.
-- model, model_hash and dtype are NULL only for a benchmark, seed and protocol only for kinds facts, moments and bench.
-- Units: seconds = compute time summed over the batches that added rows, flops = the floating-point operations planned
-- for them (NULL without a plan); created_at in UTC.
CREATE TABLE IF NOT EXISTS runs (
    run_id            VARCHAR   NOT NULL PRIMARY KEY,
    kind              VARCHAR   NOT NULL CHECK (kind IN ('trace', 'edit', 'mass', 'facts', 'moments', 'bench')),
    model             VARCHAR,
    model_hash        VARCHAR,
    dtype             VARCHAR,
    device            VARCHAR   NOT NULL,
    seed              BIGINT,
    protocol          VARCHAR   CHECK (protocol IN ('paper', 'released')),
    settings          VARCHAR   NOT NULL CHECK (json_valid(settings)),
    fasttrace_version VARCHAR   NOT NULL,
    torch_version     VARCHAR   NOT NULL,
    created_at        TIMESTAMP NOT NULL,
    seconds           DOUBLE    NOT NULL CHECK (seconds >= 0),
    flops             DOUBLE    CHECK (flops >= 0),
    CHECK (kind = 'bench' OR (model IS NOT NULL AND model_hash IS NOT NULL AND dtype IS NOT NULL)),
    CHECK (kind NOT IN ('trace', 'edit', 'mass') OR (protocol IS NOT NULL AND seed IS NOT NULL))
);
