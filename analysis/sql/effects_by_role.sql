-- effects_by_role: the mean indirect effect by token role and layer (Meng et al. 2022, Figures 2 and 3).
-- Grain: one row per (tracing run, window_size, role, layer, head); head is NULL but for runs of modules head and expert.
-- Inputs: measured_cells, traces, trace_runs.
-- Units: a fact's indirect effect at a role is the mean over its tokens of that role: by how much a cell moves the run's
-- metric towards the clean pass (methods noise and zero: away from it), in the metric's own units. mean_effect,
-- sem_effect = mean over n facts and its standard error, NULL for one fact. Roles: the subject's first, middle and last
-- token, the first token after it, further ones, and the prompt's last; a subject of one token is last-subject, and so
-- is a prompt's last token that is the subject's. Tokens before the subject have no role, and neither have cells of all
-- subject tokens at once.
-- tracing/roles.py computes the same for one result.
WITH placed AS (
    SELECT
        cell.run_id, cell.window_size, cell.fact_id, cell.token_index, cell.layer, cell.head,
        CASE
            WHEN cell.token_index < trace.subject_begin THEN NULL
            WHEN cell.token_index = trace.subject_end - 1 THEN 'last-subject'
            WHEN cell.token_index = len(trace.tokens) - 1 THEN 'last-prompt'
            WHEN cell.token_index = trace.subject_begin THEN 'first-subject'
            WHEN cell.token_index < trace.subject_end THEN 'middle-subject'
            WHEN cell.token_index = trace.subject_end THEN 'first-after'
            ELSE 'further'
        END AS role,
        CASE WHEN cell.metric = 'kl' THEN -1 ELSE 1 END
        * CASE WHEN cell.method IN ('noise', 'zero') THEN cell.m_clean - cell.m ELSE cell.m - cell.m_noised END AS moved
    FROM measured_cells AS cell
    JOIN traces AS trace ON trace.run_id = cell.run_id AND trace.fact_id = cell.fact_id
),
of_fact AS (
    -- In one order, so that a sum over several threads has the same bits each time.
    SELECT run_id, window_size, role, layer, head, fact_id, avg(moved ORDER BY token_index) AS moved
    FROM placed
    WHERE role IS NOT NULL AND moved IS NOT NULL
    GROUP BY ALL
),
means AS (
    SELECT
        run_id, window_size, role, layer, head,
        count(*) AS n,
        avg(moved ORDER BY fact_id) AS mean_effect,
        stddev_samp(moved ORDER BY fact_id) / sqrt(count(*)) AS sem_effect
    FROM of_fact
    GROUP BY ALL
)
SELECT
    run.model,
    run.protocol,
    run.module,
    run.localization,
    run.metric,
    run.tokens,
    means.window_size,
    run.trace_run,
    means.run_id AS trace_run_id,
    means.role,
    means.layer,
    means.head,
    means.n,
    means.mean_effect,
    means.sem_effect
FROM means
JOIN trace_runs AS run ON run.run_id = means.run_id
WHERE run.tokens IS DISTINCT FROM 'whole-subject'  -- NULL, in an older run, is one token per cell
ORDER BY
    model, run.protocol, module, localization, metric, run.tokens, window_size, trace_run_id,
    list_position(
        ['first-subject', 'middle-subject', 'last-subject', 'first-after', 'further', 'last-prompt'], role
    ),
    layer, head;
