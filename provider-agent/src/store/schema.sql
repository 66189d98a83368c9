-- Version 1. docs/data-model.md explains the tables; keep both in step.
CREATE TABLE nets (
    id                  INTEGER PRIMARY KEY,
    net                 BLOB NOT NULL UNIQUE CHECK (length(net) = 16),
    name                TEXT NOT NULL,
    period_s            INTEGER NOT NULL CHECK (period_s > 0),
    window_ms           INTEGER NOT NULL CHECK (window_ms > 0),
    minimum_group       INTEGER NOT NULL,
    minimum_neighbours  INTEGER NOT NULL,
    degree              INTEGER NOT NULL
) STRICT;

CREATE TABLE channels (
    net_id   INTEGER NOT NULL REFERENCES nets (id),
    channel  INTEGER NOT NULL,
    name     TEXT NOT NULL,
    PRIMARY KEY (net_id, channel)
) STRICT, WITHOUT ROWID;

CREATE TABLE entries (
    net_id  INTEGER NOT NULL REFERENCES nets (id),
    place   INTEGER NOT NULL CHECK (place >= 0),
    hash    BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    kind    INTEGER NOT NULL,
    frame   BLOB NOT NULL,
    PRIMARY KEY (net_id, place)
) STRICT;

-- The uniqueness of (net_id, round) is a privacy rule: two rosters of one round
-- that differ by one meter would give that meter's reading.
CREATE TABLE rosters (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    net_id     INTEGER NOT NULL REFERENCES nets (id),
    round      INTEGER NOT NULL CHECK (round >= 0),
    hash       BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    members    INTEGER NOT NULL,
    included   INTEGER NOT NULL,
    status     TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'final', 'lost')),
    lost_why   TEXT CHECK ((status = 'lost') = (lost_why IS NOT NULL)),
    frame      BLOB NOT NULL,
    stored_ms  INTEGER NOT NULL,
    UNIQUE (net_id, round)
) STRICT;

CREATE INDEX pending_rosters ON rosters (net_id, id) WHERE status = 'pending';
CREATE INDEX rosters_in_order ON rosters (net_id, id);

CREATE TABLE submissions (
    roster_id    INTEGER NOT NULL REFERENCES rosters (id),
    place        INTEGER NOT NULL,
    meter        BLOB NOT NULL CHECK (length(meter) = 16),
    commitments  BLOB NOT NULL CHECK (length(commitments) > 0 AND length(commitments) % 32 = 0),
    PRIMARY KEY (roster_id, place)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX submissions_of_meter ON submissions (meter, roster_id);

CREATE TABLE submission_frames (
    roster_id  INTEGER NOT NULL,
    place      INTEGER NOT NULL,
    frame      BLOB NOT NULL,
    PRIMARY KEY (roster_id, place),
    FOREIGN KEY (roster_id, place) REFERENCES submissions (roster_id, place)
) STRICT;

CREATE TABLE aggregates (
    roster_id  INTEGER PRIMARY KEY REFERENCES rosters (id),
    log_head   BLOB NOT NULL CHECK (length(log_head) = 32),
    frame      BLOB NOT NULL,
    stored_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE sums (
    roster_id  INTEGER NOT NULL REFERENCES aggregates (roster_id),
    channel    INTEGER NOT NULL,
    mwh        INTEGER NOT NULL CHECK (mwh >= 0),
    PRIMARY KEY (roster_id, channel)
) STRICT, WITHOUT ROWID;
