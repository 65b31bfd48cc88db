-- batch_traces: some facts of one made-up tracing run, of 12 to 24 tokens with a subject of 1 to 5.
-- Grain: one row a fact. Parameters: first_fact, end_fact. One in 97 is unhurt by the noise. Inputs: none. Units: as in the store's traces.
CREATE OR REPLACE TEMP TABLE batch_traces AS
SELECT
    printf('made/%06d', i) AS fact_id,
    printf('The Building %d is located in the city of', i) AS prompt,
    printf('Building %d', i) AS subject,
    'city' AS relation,
    'Paris' AS target_true,
    'Rome' AS target_false,
    0.3 + 0.6 * (hash(i, 1) % 1000003) / 1000003 AS p_clean,
    CASE WHEN i % 97 = 0 THEN p_clean ELSE 0.1 * (hash(i, 2) % 1000003) / 1000003 END AS p_noised,
    list_transform(range(12 + (hash(i, 3) % 13)::INTEGER), lambda token: printf(' t%d', token)) AS tokens,
    1 AS subject_begin,
    2 + (hash(i, 4) % 5)::INTEGER AS subject_end,
    0.1 AS sigma,
    TRUE AS kept,
    NULL::VARCHAR AS reason,
    ' Paris' AS scored,
    NULL::DOUBLE AS rank_correlation,
    'wavefront' AS engine
FROM range($first_fact, $end_fact) AS made (i)
ORDER BY i;
