-- facts_left_out: the records of a data set that are no facts, and parts of records that no fact has.
-- Grain: one row per (source, record, reason). A source that is read again replaces its rows.
-- Inputs: Store.add_left_out.
-- Units: source = the file, as it was named; record = its line or index, in words; reason = the field and what was
-- expected of it; part = whether the record is a fact without this part of it.
CREATE TABLE IF NOT EXISTS facts_left_out (
    source VARCHAR NOT NULL,
    record VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    part   BOOLEAN NOT NULL,
    PRIMARY KEY (source, record, reason)
);
