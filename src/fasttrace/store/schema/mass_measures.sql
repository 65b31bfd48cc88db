-- mass_measures: what each scoring of a mass edit measures of the edited model as a whole.
-- Grain: one row per (run, edited model, number of edits).
-- Inputs: the `measures` of ft.mass_edit.
-- Units: model_index = 0, or the number of the case, from 0, where each case is edited into a model of its own. n_edits
-- as in mass_edits. edit_seconds = time spent on the run's edits in this model, without scoring. perplexity = exp of the
-- mean of -log p over the held_out_tokens tokens of the held-out text that are predicted. entropy = n-gram entropy in
-- bits, the mean over `texts` generated texts. *_unedited are those of the model without any edit. NULL where the run
-- does not measure it, or where it is no number.
CREATE TABLE IF NOT EXISTS mass_measures (
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
