-- edit_prompts: the probabilities that every edit score is computed from, prompt by prompt.
-- Grain: one row per (run, fact, problem, method, layer, kind of prompt, number of the prompt).
-- Inputs: the `prompts` of ft.edit.
-- Units: kind = rewrite, paraphrase, neighborhood, essence, or that of a probe (facts.probes). p_* are probabilities
-- before and after the edit: of the edit's target, of o_true and of o_false. A probe with answers of its own has p of
-- the likeliest of them before and after, the likeliest after as its answer, and no p of o_true and o_false.
-- target_tokens = tokens of the edit's target, or of that answer; for an essence text, p is that of the whole text, so
-- its perplexity is p ** (-1 / target_tokens). expect = what the edit should do to it: changed, unchanged or true (NULL
-- for essence texts). match_* = whether greedy decoding gives one of the answers (without any: the edit's target, and
-- o_true where nothing should change). score = 1 for full success (docs/algorithms.md, section 18), NULL where there is
-- none. The last five are NULL in rows of older stores.
-- generated_* = the greedy continuation of the prompt as text, exact_* and prefix_* = whether it is one of the answers, or
-- begins with one (editing.answers). judged_after = what a judge says of the text after the edit, judge_error = why it
-- said nothing. answers = the texts of these answers. All are NULL where they were not asked for, and answers in rows of
-- older stores.
-- No index: statements/add_edit_prompts.sql and guard_edit_prompts.sql make sure that no row is added twice.
CREATE TABLE IF NOT EXISTS edit_prompts (
    run_id         VARCHAR NOT NULL,
    protocol       VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id        VARCHAR NOT NULL,
    problem        VARCHAR NOT NULL,
    method         VARCHAR NOT NULL,
    layer          INTEGER NOT NULL CHECK (layer >= 0),
    window_size    INTEGER NOT NULL CHECK (window_size >= 1),
    kind           VARCHAR NOT NULL CHECK (kind <> ''),
    prompt_index   INTEGER NOT NULL CHECK (prompt_index >= 0),
    prompt         VARCHAR NOT NULL,
    target_tokens  INTEGER NOT NULL CHECK (target_tokens >= 1),
    p_before       DOUBLE  CHECK (p_before BETWEEN 0 AND 1.001),
    p_after        DOUBLE  CHECK (p_after BETWEEN 0 AND 1.001),
    p_true_before  DOUBLE  CHECK (p_true_before BETWEEN 0 AND 1.001),
    p_true_after   DOUBLE  CHECK (p_true_after BETWEEN 0 AND 1.001),
    p_false_before DOUBLE  CHECK (p_false_before BETWEEN 0 AND 1.001),
    p_false_after  DOUBLE  CHECK (p_false_after BETWEEN 0 AND 1.001),
    expect         VARCHAR CHECK (expect IN ('changed', 'unchanged', 'true')),
    answer         VARCHAR,
    match_before   BOOLEAN,
    match_after    BOOLEAN,
    score          DOUBLE,
    generated_before VARCHAR,
    generated_after  VARCHAR,
    exact_before   BOOLEAN,
    exact_after    BOOLEAN,
    prefix_before  BOOLEAN,
    prefix_after   BOOLEAN,
    judged_after   BOOLEAN,
    judge_error    VARCHAR,
    answers        VARCHAR[]
);
