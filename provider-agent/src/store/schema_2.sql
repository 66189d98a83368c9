-- Version 2. docs/data-model.md explains the tables; keep both in step.
ALTER TABLE nets ADD COLUMN closed_ms INTEGER;
ALTER TABLE nets ADD COLUMN resume_ms INTEGER;

ALTER TABLE rosters ADD COLUMN compacted_ms INTEGER
    CHECK (compacted_ms IS NULL OR status <> 'pending');
CREATE INDEX rosters_not_compacted ON rosters (net_id, round) WHERE compacted_ms IS NULL;

CREATE TABLE last_rounds (
    net_id  INTEGER NOT NULL REFERENCES nets (id),
    meter   BLOB NOT NULL CHECK (length(meter) = 16),
    round   INTEGER NOT NULL CHECK (round >= 0),
    PRIMARY KEY (net_id, meter)
) STRICT, WITHOUT ROWID;

CREATE TABLE room (
    filler  BLOB NOT NULL
) STRICT;
