-- mass_norms: how large the weights of a mass edit's layers are, and how far the edits have moved them.
-- Grain: one row per (run, edited model, number of edits, edited layer).
-- Inputs: the `norms` of ft.mass_edit.
-- Units: Frobenius norms of the down-projection in the model's dtype: weight_norm with the edits, weight_norm_unedited
-- without, change_norm of their difference. model_index and n_edits as in mass_measures. Layers count from 0.
CREATE TABLE IF NOT EXISTS mass_norms (
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
