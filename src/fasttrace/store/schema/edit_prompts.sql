-- edit_prompts: the probabilities that every edit score is computed from, prompt by prompt.
-- Grain: one row per (run, fact, problem, method, layer, kind of prompt, number of the prompt).
-- Inputs: the `prompts` of ft.edit.
-- Units: p_* are probabilities before and after the edit: of the edit's target, of o_true and of o_false.
-- target_tokens = tokens of the edit's target; for an essence text, p is that of the whole text, so its perplexity is
-- p ** (-1 / target_tokens).
-- No index: statements/add_edit_prompts.sql and guard_edit_prompts.sql make sure that no row is added twice.
CREATE TABLE IF NOT EXISTS edit_prompts (
    run_id        VARCHAR NOT NULL,
    protocol      VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id       VARCHAR NOT NULL,
    problem       VARCHAR NOT NULL,
    method        VARCHAR NOT NULL,
    layer         INTEGER NOT NULL CHECK (layer >= 0),
    window_size   INTEGER NOT NULL CHECK (window_size >= 1),
    kind          VARCHAR NOT NULL CHECK (kind IN ('rewrite', 'paraphrase', 'neighborhood', 'essence')),
    prompt_index  INTEGER NOT NULL CHECK (prompt_index >= 0),
    prompt        VARCHAR NOT NULL,
    target_tokens INTEGER NOT NULL CHECK (target_tokens >= 1),
    p_before      DOUBLE  CHECK (p_before BETWEEN 0 AND 1.001),
    p_after       DOUBLE  CHECK (p_after BETWEEN 0 AND 1.001),
    p_true_before DOUBLE  CHECK (p_true_before BETWEEN 0 AND 1.001),
    p_true_after  DOUBLE  CHECK (p_true_after BETWEEN 0 AND 1.001),
    p_false_before DOUBLE CHECK (p_false_before BETWEEN 0 AND 1.001),
    p_false_after DOUBLE  CHECK (p_false_after BETWEEN 0 AND 1.001)
);
