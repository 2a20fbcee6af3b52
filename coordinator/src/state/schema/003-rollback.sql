-- The checkpoint that a job was rolled back to, until it has saved anew: its URL, its step, and the
-- newest generation whose work above it is given up, as JSON.
ALTER TABLE jobs ADD COLUMN rollback TEXT;
