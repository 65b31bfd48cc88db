-- facts: the facts, as the loader read them.
-- Grain: one row per fact_id. Inputs: Store.add_facts.
-- Units: prompt is a template with one "{}"; paraphrases and neighborhood are whole prompts; target_prefix = what stands
-- between each prompt and its target (NULL where the prompt's own end decides, usually for a space). The counterfactuals
-- of a fact are with the runs that they corrupted (traces).
CREATE TABLE IF NOT EXISTS facts (
    fact_id       VARCHAR   NOT NULL PRIMARY KEY,
    source        VARCHAR   NOT NULL,
    relation      VARCHAR,
    prompt        VARCHAR   NOT NULL,
    subject       VARCHAR   NOT NULL,
    target_true   VARCHAR   NOT NULL,
    target_false  VARCHAR,
    paraphrases   VARCHAR[] NOT NULL,
    neighborhood  VARCHAR[] NOT NULL,
    target_prefix VARCHAR
);
