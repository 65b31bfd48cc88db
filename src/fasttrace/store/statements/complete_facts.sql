-- Facts of the store get what they lack, as facts of older stores do, and the batch's other fields.
UPDATE facts
SET probes = batch.probes, case_id = batch.case_id, case_edits = batch.case_edits,
    subject_found = batch.subject_found, meta = coalesce(batch.meta, facts.meta)
FROM batch_facts AS batch
WHERE batch.fact_id = facts.fact_id
  AND (facts.probes IS NULL OR coalesce(batch.meta, facts.meta) IS DISTINCT FROM facts.meta);
