-- 11: turns a store of schema version 10 into one of version 11, where scored prompts have generated text, and which has
-- what is measured of a mass edit's model.
ALTER TABLE edit_prompts ADD COLUMN generated_before VARCHAR;
ALTER TABLE edit_prompts ADD COLUMN generated_after VARCHAR;
ALTER TABLE edit_prompts ADD COLUMN exact_before BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN exact_after BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN prefix_before BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN prefix_after BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN judged_after BOOLEAN;
ALTER TABLE edit_prompts ADD COLUMN judge_error VARCHAR;
ALTER TABLE mass_prompts ADD COLUMN generated_before VARCHAR;
ALTER TABLE mass_prompts ADD COLUMN generated_after VARCHAR;
ALTER TABLE mass_prompts ADD COLUMN exact_before BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN exact_after BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN prefix_before BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN prefix_after BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN judged_after BOOLEAN;
ALTER TABLE mass_prompts ADD COLUMN judge_error VARCHAR;
CREATE TABLE mass_measures (
    run_id              VARCHAR NOT NULL,
    protocol            VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    model_index         INTEGER NOT NULL CHECK (model_index >= 0),
    n_edits             INTEGER NOT NULL CHECK (n_edits >= 1),
    edit_seconds        DOUBLE  NOT NULL CHECK (edit_seconds >= 0),
    perplexity          DOUBLE  CHECK (perplexity > 0),
    perplexity_unedited DOUBLE  CHECK (perplexity_unedited > 0),
    held_out_tokens     BIGINT  CHECK (held_out_tokens >= 1),
    entropy             DOUBLE  CHECK (entropy >= 0),
    entropy_unedited    DOUBLE  CHECK (entropy_unedited >= 0),
    texts               INTEGER CHECK (texts >= 1),
    PRIMARY KEY (run_id, model_index, n_edits)
);
CREATE TABLE mass_norms (
    run_id               VARCHAR NOT NULL,
    protocol             VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    model_index          INTEGER NOT NULL CHECK (model_index >= 0),
    n_edits              INTEGER NOT NULL CHECK (n_edits >= 1),
    layer                INTEGER NOT NULL CHECK (layer >= 0),
    weight_norm          DOUBLE  CHECK (weight_norm >= 0),
    weight_norm_unedited DOUBLE  CHECK (weight_norm_unedited >= 0),
    change_norm          DOUBLE  CHECK (change_norm >= 0),
    PRIMARY KEY (run_id, model_index, n_edits, layer)
);
CREATE TABLE mass_tasks (
    run_id         VARCHAR NOT NULL,
    protocol       VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    model_index    INTEGER NOT NULL CHECK (model_index >= 0),
    n_edits        INTEGER NOT NULL CHECK (n_edits >= 1),
    task           VARCHAR NOT NULL,
    metric         VARCHAR NOT NULL,
    value          DOUBLE,
    value_sem      DOUBLE,
    value_unedited DOUBLE,
    samples        INTEGER CHECK (samples >= 0),
    PRIMARY KEY (run_id, model_index, n_edits, task, metric)
);
UPDATE store_schema SET version = 11;
