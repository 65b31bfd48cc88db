-- facts: the facts, as the loader read them.
-- Grain: one row per fact_id. Inputs: Store.add_facts.
-- Units: prompt is a template with one "{}"; paraphrases and neighborhood are whole prompts; target_prefix = what stands
-- between each prompt and its target (NULL where the prompt's own end decides, usually for a space). probes = what else
-- is asked after an edit; case_id = the case whose case_edits facts are edited together (NULL and 1 for a fact by
-- itself); subject_found = how the subject's place in the prompt is known (template, or how it was searched for); meta =
-- the other fields of the data set's record, as JSON (meta->>'$.name'). The last five are NULL in facts of older stores.
-- The counterfactuals of a fact are with the runs that they corrupted (traces).
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
    target_prefix VARCHAR,
    probes        STRUCT(kind VARCHAR, prompt VARCHAR, answers VARCHAR[], expect VARCHAR, "after" VARCHAR)[],
    case_id       VARCHAR,
    case_edits    INTEGER,
    subject_found VARCHAR,
    meta          JSON
);
