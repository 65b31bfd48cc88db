-- duplicate_edits: edits that are stored more than once. No index of the relation prevents this.
-- Grain: one row per duplicated key. Inputs: edits. Units: n = rows with that key.
SELECT run_id, fact_id, problem, method, layer, count(*) AS n
FROM edits
GROUP BY ALL
HAVING count(*) > 1;
