-- edits_by_number: what N edits do: scores of all, new and earlier edits, and what is measured of the model, by N.
-- Grain: one row per (mass-editing run, number of edits). Inputs: mass_edits, mass_prompts, mass_measures, mass_norms,
-- mass_settings, runs, run_names.
-- Units: n_edits = edits in the model; at_once = facts solved together; past_keys as the run has it (NULL where there
-- are no earlier keys). rewrite, neighborhood = means over the n facts edited so far, where 1 is full success;
-- rewrite_newest = of the last at_once facts or fewer that were solved together, rewrite_earlier = of those before (NULL
-- where there are none). match = share of these facts whose rewrite prompt greedy decoding continues with the edit's
-- target; exact, prefix = share whose greedy continuation, as text, is the target or begins with it (--generate; NULL
-- without). neighbors_kept = share of the neighborhood prompts that greedy decoding continued with o_true before the
-- edits, and still does. perplexity, entropy (bits) and edit_seconds as in mass_measures, means over the run's models.
-- relative_change = largest ‖ΔW‖/‖W‖ (Frobenius) of a layer, W without any edit. edit_run = the run's name (run_names).
-- Layers count from 0.
WITH edited AS (
    SELECT
        edit.*,
        min(edit.position) OVER (PARTITION BY edit.run_id) - 1 AS before,
        coalesce(asked.at_once, 1) AS at_once,
        asked.past_keys
    FROM mass_edits AS edit
    JOIN mass_settings AS asked ON asked.run_id = edit.run_id
    WHERE edit.position IS NOT NULL
),
grouped AS (
    SELECT *, position - before > (n_edits - before - 1) // at_once * at_once AS newest FROM edited
),
matched AS (
    SELECT
        run_id, n_edits,
        avg(match_after::INTEGER) FILTER (WHERE kind = 'rewrite') AS match,
        avg(exact_after::INTEGER) FILTER (WHERE kind = 'rewrite') AS exact,
        avg(prefix_after::INTEGER) FILTER (WHERE kind = 'rewrite') AS prefix,
        avg(match_after::INTEGER) FILTER (WHERE kind = 'neighborhood' AND match_before) AS neighbors_kept
    FROM mass_prompts
    GROUP BY ALL
),
measured AS (
    SELECT
        run_id, n_edits,
        avg(perplexity) AS perplexity,
        avg(perplexity_unedited) AS perplexity_unedited,
        avg(entropy) AS entropy,
        avg(entropy_unedited) AS entropy_unedited,
        avg(edit_seconds) AS edit_seconds
    FROM mass_measures
    GROUP BY ALL
),
moved AS (
    SELECT run_id, n_edits, max(change_norm / nullif(weight_norm_unedited, 0)) AS relative_change
    FROM mass_norms
    GROUP BY ALL
)
SELECT
    edit.problem, edit.method, edit.protocol, run.model, edit.window_size, named.run_name AS edit_run,
    edit.run_id AS edit_run_id, edit.layer, edit.at_once, edit.past_keys, edit.n_edits,
    count(*) AS n,
    avg(edit.rewrite) AS rewrite,
    avg(edit.rewrite) FILTER (WHERE edit.newest) AS rewrite_newest,
    avg(edit.rewrite) FILTER (WHERE NOT edit.newest) AS rewrite_earlier,
    any_value(matched.match) AS match,
    any_value(matched.exact) AS exact,
    any_value(matched.prefix) AS prefix,
    avg(edit.neighborhood) AS neighborhood,
    any_value(matched.neighbors_kept) AS neighbors_kept,
    any_value(measured.perplexity) AS perplexity,
    any_value(measured.perplexity_unedited) AS perplexity_unedited,
    any_value(measured.entropy) AS entropy,
    any_value(measured.entropy_unedited) AS entropy_unedited,
    any_value(moved.relative_change) AS relative_change,
    any_value(measured.edit_seconds) AS edit_seconds
FROM grouped AS edit
JOIN runs AS run ON run.run_id = edit.run_id
LEFT JOIN run_names AS named ON named.run_id = edit.run_id
LEFT JOIN matched ON matched.run_id = edit.run_id AND matched.n_edits = edit.n_edits
LEFT JOIN measured ON measured.run_id = edit.run_id AND measured.n_edits = edit.n_edits
LEFT JOIN moved ON moved.run_id = edit.run_id AND moved.n_edits = edit.n_edits
GROUP BY
    edit.problem, edit.method, edit.protocol, run.model, edit.window_size, named.run_name, edit.run_id, edit.layer,
    edit.at_once, edit.past_keys, edit.n_edits
ORDER BY
    edit.problem, edit.method, edit.protocol, run.model, edit.window_size, edit.run_id, edit.layer, edit.n_edits;
