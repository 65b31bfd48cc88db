-- edits_by_cell: how many edits each problem and method has, in the order of the regressions.
-- Grain: one row per (problem, method). Inputs: edits. Units: number of edits.
SELECT problem, method, count(*) AS edits FROM edits GROUP BY problem, method ORDER BY problem, method;
