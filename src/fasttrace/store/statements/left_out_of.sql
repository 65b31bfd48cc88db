-- What the store says of the records of a source that are no facts.
SELECT record, reason, part
FROM facts_left_out
WHERE source = $source;
