-- Version 4: who let a round be lost. docs/data-model.md explains the tables; keep both in step.
CREATE TABLE missing_reveals (
    roster_id  INTEGER NOT NULL REFERENCES rosters (id),
    place      INTEGER NOT NULL,
    meter      BLOB NOT NULL CHECK (length(meter) = 16),
    PRIMARY KEY (roster_id, place)
) STRICT, WITHOUT ROWID;
