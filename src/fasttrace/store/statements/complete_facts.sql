-- Facts of the store get what they lack, as facts of older stores do. The batch's other fields are added to theirs, and
-- replace those of the same name.
UPDATE facts
SET probes = coalesce(batch.probes, facts.probes), case_id = coalesce(batch.case_id, facts.case_id),
    case_edits = coalesce(batch.case_edits, facts.case_edits),
    subject_found = coalesce(batch.subject_found, facts.subject_found),
    meta = CASE
        WHEN batch.meta IS NULL OR facts.meta IS NULL THEN coalesce(batch.meta, facts.meta)
        ELSE json_merge_patch(facts.meta, batch.meta)
    END
FROM batch_facts AS batch
WHERE batch.fact_id = facts.fact_id
  AND (
      facts.probes IS NULL AND batch.probes IS NOT NULL
      -- The order of the fields is not compared, because every merge changes it.
      OR len(list_filter(
          map_entries(CAST(CAST(batch.meta AS JSON) AS MAP(VARCHAR, JSON))),
          lambda field: field.value IS DISTINCT FROM map_extract(CAST(facts.meta AS MAP(VARCHAR, JSON)), field.key)[1]
      )) > 0
      OR facts.meta IS NULL AND batch.meta IS NOT NULL
  );
