-- duplicate_edits: edits that are there more than once; the relation has no index that would refuse them.
-- Grain: one row a key at fault. Inputs: edits. Units: n = rows with that key.
SELECT run_id, fact_id, problem, method, layer, count(*) AS n
FROM edits
GROUP BY ALL
HAVING count(*) > 1;
