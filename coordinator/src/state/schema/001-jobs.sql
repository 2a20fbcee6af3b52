-- Counters of the coordinator: 'incarnation' and 'counter', the newest generation's two halves.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO meta VALUES ('incarnation', 0), ('counter', 0);

CREATE TABLE jobs (
    job_id           TEXT PRIMARY KEY,
    sequence         INTEGER NOT NULL UNIQUE,
    name             TEXT NOT NULL,
    state            TEXT NOT NULL,
    reason           TEXT NOT NULL,
    request_id       TEXT NOT NULL UNIQUE,
    manifest         TEXT NOT NULL,
    manifest_yaml    TEXT NOT NULL,
    file_name        TEXT NOT NULL,
    resume_from      TEXT NOT NULL,
    priority         INTEGER NOT NULL,
    labels           TEXT NOT NULL,
    world_size       INTEGER NOT NULL,
    submitted_at_ms  INTEGER NOT NULL,
    started_at_ms    INTEGER NOT NULL,
    ended_at_ms      INTEGER NOT NULL,
    incarnation      INTEGER,
    counter          INTEGER,
    formed           INTEGER NOT NULL,
    recoveries       INTEGER NOT NULL,
    without_progress INTEGER NOT NULL,
    high_step        INTEGER NOT NULL,
    cancel_reason    TEXT,
    summary_json     TEXT NOT NULL,
    checkpoint_step  INTEGER NOT NULL,
    checkpoint_url   TEXT NOT NULL,
    threads          INTEGER NOT NULL,
    seats            TEXT NOT NULL,
    done             TEXT NOT NULL
);

-- Fixed by a job's first generation and kept for all later ones.
CREATE TABLE numeric_plans (
    job_id TEXT PRIMARY KEY REFERENCES jobs(job_id),
    plan   TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE events (
    id      INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    job_id  TEXT NOT NULL,
    kind    TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX events_by_job ON events(job_id, id);

CREATE TABLE generations (
    incarnation  INTEGER NOT NULL,
    counter      INTEGER NOT NULL,
    job_id       TEXT NOT NULL,
    opened_at_ms INTEGER NOT NULL,
    reason       TEXT NOT NULL,
    PRIMARY KEY (incarnation, counter)
) WITHOUT ROWID;

-- digest holds the 64 bits of the unsigned digest as SQLite's signed integer.
CREATE TABLE checkpoint_grants (
    job_id        TEXT NOT NULL,
    incarnation   INTEGER NOT NULL,
    counter       INTEGER NOT NULL,
    step          INTEGER NOT NULL,
    digest        INTEGER NOT NULL,
    granted_at_ms INTEGER NOT NULL,
    objects       TEXT NOT NULL,
    published_url TEXT,
    PRIMARY KEY (job_id, incarnation, counter, step)
) WITHOUT ROWID;

-- What each rank uploaded of a checkpoint that is not yet published; the objects as JSON.
CREATE TABLE checkpoint_shards (
    job_id      TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    counter     INTEGER NOT NULL,
    step        INTEGER NOT NULL,
    rank        INTEGER NOT NULL,
    objects     TEXT NOT NULL,
    PRIMARY KEY (job_id, incarnation, counter, step, rank)
) WITHOUT ROWID;
