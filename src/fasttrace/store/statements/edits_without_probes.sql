-- How many edits of a run have no row for a probe that is asked after them. Facts of older stores had none.
SELECT count(*) AS edits
FROM edits
JOIN facts USING (fact_id)
WHERE edits.run_id = $run_id AND edits.rewrite IS NOT NULL
  AND len(list_filter(facts.probes, lambda probe: probe."after" = 'edit')) > 0
  AND NOT EXISTS (
      FROM edit_prompts AS prompt
      WHERE prompt.run_id = edits.run_id AND prompt.fact_id = edits.fact_id AND prompt.layer = edits.layer
        AND prompt.expect IS NOT NULL
  );
