-- The newest ring: seats in ring order, as JSON. Before this version a ring always had all seats, in
-- the order of seats.
ALTER TABLE jobs ADD COLUMN ring TEXT NOT NULL DEFAULT '[]';
UPDATE jobs SET ring = (
    WITH RECURSIVE seat(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM seat WHERE n + 1 < world_size)
    SELECT json_group_array(n) FROM seat
) WHERE formed = 1;

-- Which slot of its node each seat has, as JSON, by seat. Before this version it was counted within
-- the job.
ALTER TABLE jobs ADD COLUMN slots TEXT NOT NULL DEFAULT '[]';
UPDATE jobs SET slots = (
    SELECT json_group_array((
        SELECT count(*) FROM json_each(jobs.seats) AS before
        WHERE before.key < this.key AND before.value = this.value
    )) FROM json_each(jobs.seats) AS this
);

-- 'preempt' or 'pause' while the ranks of a job stop for that, and why.
ALTER TABLE jobs ADD COLUMN halt TEXT;
ALTER TABLE jobs ADD COLUMN halt_reason TEXT;

-- Nodes that take no ranks; the others have no row. availability is 'drained' or 'excluded'.
CREATE TABLE nodes (
    node         TEXT PRIMARY KEY,
    availability TEXT NOT NULL,
    reason       TEXT NOT NULL,
    since_ms     INTEGER NOT NULL
) WITHOUT ROWID;
