-- Facts of the batch whose fact_id the store already uses for something else, and whether just their probes differ.
SELECT
    batch.fact_id,
    (facts.prompt, facts.subject, facts.target_true) IS NOT DISTINCT FROM
        (batch.prompt, batch.subject, batch.target_true)
    AND facts.target_false IS NOT DISTINCT FROM batch.target_false
    AND facts.paraphrases IS NOT DISTINCT FROM batch.paraphrases
    AND facts.neighborhood IS NOT DISTINCT FROM batch.neighborhood
    AND facts.target_prefix IS NOT DISTINCT FROM batch.target_prefix AS same_but_for_probes
FROM batch_facts AS batch
JOIN facts ON facts.fact_id = batch.fact_id
WHERE (facts.prompt, facts.subject, facts.target_true) IS DISTINCT FROM (batch.prompt, batch.subject, batch.target_true)
   OR facts.target_false IS DISTINCT FROM batch.target_false
   OR facts.paraphrases IS DISTINCT FROM batch.paraphrases
   OR facts.neighborhood IS DISTINCT FROM batch.neighborhood
   OR facts.target_prefix IS DISTINCT FROM batch.target_prefix
   -- Facts of older stores have no probes.
   OR (facts.probes, facts.case_id, facts.case_edits) IS DISTINCT FROM (batch.probes, batch.case_id, batch.case_edits)
      AND facts.probes IS NOT NULL AND batch.probes IS NOT NULL
ORDER BY batch.fact_id
LIMIT 1;
