-- duplicate_cells: cells that are there more than once; the relation has no index that would refuse them.
-- Grain: one row a key at fault. Inputs: trace_cells. Units: n = rows with that key.
SELECT run_id, fact_id, window_size, token_index, layer, count(*) AS n
FROM trace_cells
GROUP BY ALL
HAVING count(*) > 1;
