-- benches: measured speed, in long form.
-- Grain: one row per (run, benchmark, case, implementation, metric). Inputs: the `benches` of a benchmark result.
-- Units: named in `unit` (seconds, bytes, FLOP, ...); value = median over n repetitions, low and high =
-- the quartiles; machine = where it was measured, commit = of which code.
CREATE TABLE IF NOT EXISTS benches (
    run_id    VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL,
    "case"    VARCHAR NOT NULL,
    impl      VARCHAR NOT NULL,
    metric    VARCHAR NOT NULL,
    value     DOUBLE,
    low       DOUBLE,
    high      DOUBLE,
    unit      VARCHAR NOT NULL,
    n         INTEGER NOT NULL CHECK (n >= 1),
    machine   VARCHAR NOT NULL,
    "commit"  VARCHAR NOT NULL,
    PRIMARY KEY (run_id, benchmark, "case", impl, metric)
);
