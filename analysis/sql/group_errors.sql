-- group_errors: what only a second look at the rows tells about a group: facts, and how far off the models are.
-- Grain: one row a group as in layer_sums. Inputs: regression_rows, layer_sums, group_fits.
-- Units: n_facts = facts with a row used, n_facts_left_out = facts with none; mae_* = mean absolute error of the model
-- in units of the score (paper, Tables 7 and 8), NULL where no row is used.
CREATE OR REPLACE TEMP VIEW group_errors AS
WITH
lines AS (
    SELECT
        layer.*,
        CASE WHEN has_slope THEN s_xy / s_xx ELSE 0 END AS layer_slope,
        fit.grand_x,
        fit.grand_y,
        fit.slope
    FROM layer_sums AS layer
    JOIN group_fits AS fit
        ON fit.pair = layer.pair
        AND fit.source IS NOT DISTINCT FROM layer.source
        AND fit.score = layer.score
        AND fit.effect_at = layer.effect_at
        AND fit.subset = layer.subset
),
facts AS (
    SELECT
        edit.pair, edit.source, edit.score, edit.effect_at, edit.subset, edit.fact_id,
        count(*) FILTER (WHERE used) AS n,
        sum(abs(y - mean_y)) FILTER (WHERE used) AS off_layer,
        sum(abs(y - grand_y - slope * (x - grand_x))) FILTER (WHERE used) AS off_effect,
        sum(abs(y - mean_y - layer_slope * (x - mean_x))) FILTER (WHERE used) AS off_both
    FROM regression_rows AS edit
    JOIN lines AS line
        ON line.pair = edit.pair
        AND line.source IS NOT DISTINCT FROM edit.source
        AND line.score = edit.score
        AND line.effect_at = edit.effect_at
        AND line.subset = edit.subset
        AND line.layer = edit.layer
    GROUP BY ALL
)
SELECT
    pair, source, score, effect_at, subset,
    count(*) FILTER (WHERE n > 0) AS n_facts,
    count(*) FILTER (WHERE n = 0) AS n_facts_left_out,
    sum(off_layer) / sum(n) AS mae_layer,
    sum(off_effect) / sum(n) AS mae_effect,
    sum(off_both) / sum(n) AS mae_both
FROM facts
GROUP BY ALL;
