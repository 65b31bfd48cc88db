-- Facts of the store get what they lack, as facts of older stores do. The batch's other fields are added to theirs, and
-- replace those of the same name.
UPDATE facts
SET probes = batch.probes, case_id = batch.case_id, case_edits = batch.case_edits,
    subject_found = batch.subject_found,
    meta = CASE
        WHEN batch.meta IS NULL OR facts.meta IS NULL THEN coalesce(batch.meta, facts.meta)
        ELSE json_merge_patch(facts.meta, batch.meta)
    END
FROM batch_facts AS batch
WHERE batch.fact_id = facts.fact_id
  AND (
      facts.probes IS NULL OR (batch.meta IS NOT NULL AND facts.meta IS NULL)
      OR json_merge_patch(facts.meta, batch.meta) IS DISTINCT FROM facts.meta AND batch.meta IS NOT NULL
  );
