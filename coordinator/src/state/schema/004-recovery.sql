-- The newest generation whose states were given up by a roll-back, as JSON [incarnation, counter]. Unlike
-- what a roll-back still has to tell the store, this stays for good: a rank of such a generation that was
-- cut off may come back at any time.
ALTER TABLE jobs ADD COLUMN given_up TEXT;
UPDATE jobs SET given_up = json_extract(rollback, '$.up_to') WHERE rollback IS NOT NULL;

-- Why a rank could not store its part of a checkpoint; empty where it did.
ALTER TABLE checkpoint_shards ADD COLUMN failure TEXT NOT NULL DEFAULT '';

-- What nodes are charged with. Half of it is forgotten every hour since at_ms.
CREATE TABLE node_faults (
    node  TEXT PRIMARY KEY,
    score REAL NOT NULL,
    at_ms INTEGER NOT NULL
) WITHOUT ROWID;
