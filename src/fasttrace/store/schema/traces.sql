-- traces: the results of a tracing run for a fact as a whole.
-- Grain: one row per (run, fact), including the facts that were left out. Inputs: the `facts` of ft.trace.
-- Units: p_clean, p_noised = p(scored), a probability, p_noised NULL without corrupted passes; scored = the text that is
-- scored after the prompt (o_true, its first token, or the first token of the model's answer); subject tokens are
-- [subject_begin, subject_end); sigma = standard deviation of the noise on the embeddings, NULL without noise; reason =
-- why the fact was left out, or which of its counterfactuals were, NULL where nothing was; rank_correlation = Spearman's
-- correlation of estimated and exact cells, where a screening run verified some. p_false_* = p of o_false's token,
-- logit_diff_* = logit of o_true's token minus that of o_false's, both at the position that predicts the first token in
-- which the two differ (NULL without one); logprob_* = log of p(scored), in nats, for runs with that metric; kl_noised =
-- KL divergence of the clean pass's distribution at that position from the corrupted passes', in nats, for runs with
-- that metric; counterfactuals = the fact's counterfactual prompts that fit (NULL with noise); target_false = o_false,
-- or between prompts the counterfactual answer of a fact without one. *_noised = mean over the corrupted passes. engine =
-- what computed the passes: wavefront, or hooked (transformers' forward with hooks); NULL stands for wavefront in rows
-- of a store before schema version 13.
CREATE TABLE IF NOT EXISTS traces (
    run_id        VARCHAR NOT NULL,
    protocol      VARCHAR NOT NULL CHECK (protocol IN ('paper', 'released')),
    fact_id       VARCHAR NOT NULL,
    prompt        VARCHAR NOT NULL,
    subject       VARCHAR NOT NULL,
    relation      VARCHAR,
    target_true   VARCHAR NOT NULL,
    target_false  VARCHAR,
    p_clean       DOUBLE  CHECK (p_clean BETWEEN 0 AND 1.001),
    p_noised      DOUBLE  CHECK (p_noised BETWEEN 0 AND 1.001),
    tokens        VARCHAR[],
    subject_begin INTEGER CHECK (subject_begin >= 0),
    subject_end   INTEGER CHECK (subject_end >= 0),
    sigma         DOUBLE  CHECK (sigma >= 0),
    kept          BOOLEAN NOT NULL,
    reason        VARCHAR,
    scored        VARCHAR,
    rank_correlation DOUBLE CHECK (rank_correlation BETWEEN -1.001 AND 1.001),
    p_false_clean     DOUBLE,
    p_false_noised    DOUBLE,
    logit_diff_clean  DOUBLE,
    logit_diff_noised DOUBLE,
    logprob_clean     DOUBLE,
    logprob_noised    DOUBLE,
    kl_noised         DOUBLE,
    counterfactuals   VARCHAR[],
    engine            VARCHAR,
    PRIMARY KEY (run_id, fact_id),
    CHECK (kept OR reason IS NOT NULL)
);
