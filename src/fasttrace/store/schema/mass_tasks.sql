-- mass_tasks: the results of lm-evaluation-harness on a mass edit's model.
-- Grain: one row per (run, edited model, number of edits, task, metric).
-- Inputs: the `tasks` of ft.mass_edit.
-- Units: metric = name and filter, as the harness has them (acc,none); value in its own units, value_sem its standard
-- error (NULL where the harness has none), value_unedited = that of the model without any edit. samples = items of the
-- task, NULL for a group of tasks. model_index and n_edits as in mass_measures.
CREATE TABLE IF NOT EXISTS mass_tasks (
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
