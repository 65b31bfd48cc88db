-- mass_means: mean scores of the facts edited into one model, by number of edits.
-- Grain: one row per (mass-editing run, number of edits). Inputs: mass_edits, runs, run_names.
-- Units: n_edits = edits that the model holds; scores are means over the n facts edited so far, where 1 is full
-- success; X_below_0 = facts whose score X is below 0; X_floored = mean of the score with a floor at 0; success = share of
-- these facts; sem_rewrite = standard error of the mean rewrite score, NULL for one fact.
-- edit_run = the run's name (run_names). Layers count from 0.
SELECT
    mass.problem,
    mass.method,
    mass.protocol,
    run.model,
    mass.window_size,
    named.run_name AS edit_run,
    mass.run_id AS edit_run_id,
    mass.layer,
    mass.n_edits,
    count(*) AS n,
    avg(mass.rewrite) AS rewrite,
    stddev_samp(mass.rewrite) / sqrt(count(mass.rewrite)) AS sem_rewrite,
    avg(mass.paraphrase) AS paraphrase,
    avg(mass.neighborhood) AS neighborhood,
    avg(mass.essence) AS essence,
    avg(mass.overall) AS overall,
    count(*) FILTER (WHERE mass.rewrite < 0) AS rewrite_below_0,
    count(*) FILTER (WHERE mass.paraphrase < 0) AS paraphrase_below_0,
    count(*) FILTER (WHERE mass.overall < 0) AS overall_below_0,
    avg(CASE WHEN mass.rewrite IS NOT NULL THEN greatest(mass.rewrite, 0) END) AS rewrite_floored,
    avg(CASE WHEN mass.paraphrase IS NOT NULL THEN greatest(mass.paraphrase, 0) END) AS paraphrase_floored,
    avg(CASE WHEN mass.overall IS NOT NULL
        THEN (greatest(mass.rewrite, 0) + greatest(mass.paraphrase, 0) + mass.neighborhood) / 3 END) AS overall_floored,
    avg(mass.success::INTEGER) AS success
FROM mass_edits AS mass
JOIN runs AS run ON run.run_id = mass.run_id
LEFT JOIN run_names AS named ON named.run_id = mass.run_id
GROUP BY ALL
ORDER BY mass.problem, mass.method, mass.protocol, run.model, mass.window_size, mass.run_id, mass.layer, mass.n_edits;
