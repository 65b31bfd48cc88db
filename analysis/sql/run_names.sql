-- run_names: the settings that tell a run apart from the store's other runs of the same kind.
-- Grain: one row per run that traces or edits, if another run of the same kind, model, protocol, problem, method,
-- module, corruption, metric and tokens differs from it in a setting. Inputs: runs, trace_settings, edit_settings,
-- mass_settings.
-- Units: run_name = the settings in which these runs differ, with this run's values, such as "contexts 0, seed 3";
-- lists without brackets, and texts of more than 40 characters cut. weights = the first 8 letters of model_hash;
-- fasttrace = its version.
WITH asked AS (
    SELECT run_id, concat_ws(' ', module, corruption, method, metric, tokens) AS what, to_json(one) AS settings
    FROM trace_settings AS one
    UNION ALL
    SELECT run_id, concat_ws(' ', problem, method) AS what, to_json(one) AS settings FROM edit_settings AS one
    UNION ALL
    SELECT run_id, concat_ws(' ', problem, method) AS what, to_json(one) AS settings FROM mass_settings AS one
),
described AS (
    SELECT
        run.run_id, run.kind, run.model, run.protocol, asked.what,
        json_merge_patch(
            asked.settings,
            json_object(
                'seed', run.seed, 'dtype', run.dtype, 'weights', left(run.model_hash, 8),
                'fasttrace', run.fasttrace_version
            )
        ) AS settings
    FROM runs AS run
    JOIN asked ON asked.run_id = run.run_id
),
listed AS (
    SELECT run_id, kind, model, protocol, what, settings, unnest(json_keys(settings)) AS setting
    FROM described
),
valued AS (
    SELECT * EXCLUDE (settings), coalesce(trim(settings ->> setting, '[]'), 'none') AS value
    FROM listed
    WHERE setting <> 'run_id'
),
differing AS (
    SELECT kind, model, protocol, what, setting
    FROM valued
    GROUP BY ALL
    HAVING count(DISTINCT value) > 1
)
SELECT
    run_id,
    string_agg(
        replace(setting, '_', ' ') || ' ' || CASE WHEN length(value) > 40 THEN left(value, 39) || '…' ELSE value END,
        ', ' ORDER BY setting
    ) AS run_name
FROM valued
SEMI JOIN differing
    ON differing.kind = valued.kind
    AND differing.model = valued.model
    AND differing.protocol = valued.protocol
    AND differing.what = valued.what
    AND differing.setting = valued.setting
GROUP BY run_id;
