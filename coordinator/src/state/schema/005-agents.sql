-- Which process the agent of a node is. After a restart of the coordinator its name is kept for it, as long as
-- the ranks that it ran are awaited.
CREATE TABLE agents (
    node     TEXT PRIMARY KEY,
    instance TEXT NOT NULL,
    pid      INTEGER NOT NULL
) WITHOUT ROWID;
