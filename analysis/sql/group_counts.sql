-- group_counts: what a regression uses and what it leaves out.
-- Grain: one row a group as in layer_sums. Inputs: regression_rows.
-- Units: n = rows used, n_left_out = rows without an effect or a score; n_facts = facts with a row used,
-- n_facts_left_out = facts with none.
CREATE OR REPLACE TEMP VIEW group_counts AS
SELECT
    edit_run_id, trace_run_id, problem, method, window_size, score, effect_at,
    count(*) FILTER (WHERE used) AS n,
    count(*) FILTER (WHERE NOT used) AS n_left_out,
    count(DISTINCT fact_id) FILTER (WHERE used) AS n_facts,
    count(DISTINCT fact_id) - n_facts AS n_facts_left_out
FROM regression_rows
GROUP BY ALL;
