-- Version 3. docs/data-model.md explains the tables; keep both in step.
-- Rounds without a sum are few among all that are kept.
CREATE INDEX rosters_unfinished ON rosters (net_id, round) WHERE status <> 'final';
