-- moments: the folder of the keys' second moments on disk, and the corpus they were collected from.
-- Grain: one row per run. Inputs: the result of ft.second_moments.
-- Units: n_tokens = tokens summed over; layers count from 0; path = the folder with one (m, m) matrix per layer.
CREATE TABLE IF NOT EXISTS moments (
    run_id      VARCHAR   NOT NULL PRIMARY KEY,
    model_hash  VARCHAR   NOT NULL,
    corpus_hash VARCHAR   NOT NULL,
    n_tokens    BIGINT    NOT NULL CHECK (n_tokens > 0),
    layers      INTEGER[] NOT NULL,
    path        VARCHAR   NOT NULL,
    corpus      VARCHAR   NOT NULL
);
