-- routing_off: tokens that go twice to one expert, or to another number of experts than the layer's other tokens.
-- Grain: one row per wrong (run, fact, pass, token, layer). Inputs: trace_routing. Units: n = rows of the token,
-- experts = distinct experts among them, most = the largest n in the run's layer; sample is NULL for the clean pass.
WITH token AS (
    SELECT run_id, fact_id, sample, token_index, layer, count(*) AS n, count(DISTINCT expert) AS experts
    FROM trace_routing
    GROUP BY ALL
)
SELECT *, max(n) OVER (PARTITION BY run_id, layer) AS most
FROM token
QUALIFY experts < n OR n < most;
