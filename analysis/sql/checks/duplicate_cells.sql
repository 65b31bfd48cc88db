-- duplicate_cells: cells that are stored more than once. No index of the relation prevents this.
-- Grain: one row per duplicated key. Inputs: trace_cells. Units: n = rows with that key.
SELECT run_id, fact_id, window_size, token_index, layer, head, count(*) AS n
FROM trace_cells
GROUP BY ALL
HAVING count(*) > 1;
