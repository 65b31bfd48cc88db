-- screening: how well attribution's estimates rank the cells that another run computed exactly.
-- Grain: one row per (exact run, screening run, fact_id, window_size) of runs with the same model, protocol, module,
-- corruption, scored text and engine.
-- Inputs: trace_cells, runs, trace_settings. Units: spearman = rank correlation of estimated and exact p_restored
-- over all cells, where ties share their mean rank; top_10_in_top_40 = share of the exact top 10 cells that are among
-- the estimated top 40.
WITH cells AS (
    SELECT
        run.model_hash, run.protocol, run.model,
        asked.module, asked.corruption, asked.scored, asked.engine, asked.method,
        cell.run_id, cell.fact_id, cell.window_size, cell.token_index, cell.layer, cell.head,
        coalesce(cell.p_screened, cell.p_restored) AS p
    FROM trace_cells AS cell
    JOIN runs AS run ON run.run_id = cell.run_id
    JOIN trace_settings AS asked ON asked.run_id = cell.run_id
    WHERE asked.method IN ('denoise', 'attribution')
),
pairs AS (
    SELECT
        exact.model, exact.protocol, exact.module, exact.window_size, exact.fact_id,
        exact.run_id AS exact_run_id,
        guess.run_id AS screening_run_id,
        exact.p AS p_exact,
        guess.p AS p_guess
    FROM cells AS exact
    JOIN cells AS guess
        ON guess.method = 'attribution'
        AND guess.model_hash = exact.model_hash
        AND guess.protocol = exact.protocol
        AND guess.module = exact.module
        AND guess.corruption = exact.corruption
        AND guess.scored = exact.scored
        AND guess.engine = exact.engine
        AND guess.fact_id = exact.fact_id
        AND guess.window_size = exact.window_size
        AND guess.token_index = exact.token_index
        AND guess.layer = exact.layer
        AND guess.head IS NOT DISTINCT FROM exact.head
    WHERE exact.method = 'denoise'
),
ranked AS (
    SELECT
        *,
        rank() OVER (grid ORDER BY p_exact) + (count(*) OVER (grid_and_exact) - 1) / 2.0 AS rank_exact,
        rank() OVER (grid ORDER BY p_guess) + (count(*) OVER (grid_and_guess) - 1) / 2.0 AS rank_guess,
        row_number() OVER (grid ORDER BY p_exact DESC) AS place_exact,
        row_number() OVER (grid ORDER BY p_guess DESC) AS place_guess
    FROM pairs
    WINDOW
        grid AS (PARTITION BY exact_run_id, screening_run_id, fact_id, window_size),
        grid_and_exact AS (PARTITION BY exact_run_id, screening_run_id, fact_id, window_size, p_exact),
        grid_and_guess AS (PARTITION BY exact_run_id, screening_run_id, fact_id, window_size, p_guess)
)
SELECT
    model, protocol, module, window_size, exact_run_id, screening_run_id, fact_id,
    count(*) AS cells,
    corr(rank_exact, rank_guess) AS spearman,
    count(*) FILTER (WHERE place_exact <= 10 AND place_guess <= 40)
        / count(*) FILTER (WHERE place_exact <= 10) AS top_10_in_top_40
FROM ranked
GROUP BY ALL
ORDER BY ALL;
