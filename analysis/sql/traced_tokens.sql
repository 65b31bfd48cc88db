-- traced_tokens: the first facts traced, with the tokens of their prompts.
-- Grain: one row per fact_id, of the oldest run that traced it. Inputs: traces, runs.
-- Units: tokens = texts of the prompt's tokens, of which the subject has [subject_begin, subject_end); target = the text
-- that is scored after the prompt, or o_true where the fact was left out. Oldest runs first, at most 12 facts.
WITH first_traces AS (
    SELECT
        trace.run_id AS trace_run_id,
        run.model,
        trace.fact_id,
        trace.tokens,
        trace.subject_begin,
        trace.subject_end,
        coalesce(trace.scored, trace.target_true) AS target,
        run.created_at
    FROM traces AS trace
    JOIN runs AS run ON run.run_id = trace.run_id
    WHERE len(trace.tokens) > 0
    QUALIFY row_number() OVER (PARTITION BY trace.fact_id ORDER BY run.created_at, trace.run_id) = 1
)
SELECT trace_run_id, model, fact_id, tokens, subject_begin, subject_end, target
FROM first_traces
ORDER BY created_at, trace_run_id, fact_id
LIMIT 12;
