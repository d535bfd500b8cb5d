-- Runs, alerts with their messages, and dead letters. The Postgres twin of this file has the same tables.
-- Instants are text such as 2025-11-27T02:00:00.000000Z: always UTC and six digits, so that they sort.

CREATE TABLE jobs (
    name       TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    schedule   TEXT,
    timezone   TEXT NOT NULL,
    retired_at TEXT
);

CREATE TABLE job_runs (
    id          TEXT PRIMARY KEY,
    job         TEXT NOT NULL,
    slot        TEXT,
    attempt     INTEGER NOT NULL,
    trigger     TEXT NOT NULL,
    state       TEXT NOT NULL,
    cause       TEXT,
    slots       INTEGER NOT NULL,
    exclusive   INTEGER NOT NULL,
    owner       TEXT NOT NULL,
    host        TEXT NOT NULL,
    version     TEXT NOT NULL,
    lease_until TEXT,
    created_at  TEXT NOT NULL,
    started_at  TEXT,
    finished_at TEXT,
    duration_ms INTEGER,
    rows        INTEGER,
    error       TEXT,
    findings    TEXT NOT NULL,
    CHECK ((state = 'running') = (lease_until IS NOT NULL))
);

-- A slot runs once.
CREATE UNIQUE INDEX run_slot ON job_runs (job, slot, attempt) WHERE slot IS NOT NULL;
-- One copy of a job runs at a time, on any replica.
CREATE UNIQUE INDEX run_exclusive ON job_runs (job) WHERE state = 'running' AND exclusive;
-- Heartbeats and the reaper look at what runs now, and at nothing else. No index holds lease_until, which changes all the
-- time.
CREATE INDEX run_owner ON job_runs (owner) WHERE state = 'running';
-- Lists are read newest first.
CREATE INDEX run_newest ON job_runs (created_at, id);
CREATE INDEX run_newest_of_job ON job_runs (job, created_at, id);

CREATE TABLE alerts (
    fingerprint TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    labels      TEXT NOT NULL,
    severity    TEXT NOT NULL,
    state       TEXT NOT NULL,
    summary     TEXT NOT NULL,
    starts_at   TEXT NOT NULL,
    ends_at     TEXT,
    seq         INTEGER NOT NULL
);

CREATE TABLE outbox (
    id          TEXT PRIMARY KEY,
    receiver    TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    event       TEXT NOT NULL,
    notice      TEXT NOT NULL,
    state       TEXT NOT NULL,
    attempts    INTEGER NOT NULL,
    created_at  TEXT NOT NULL,
    next_at     TEXT NOT NULL,
    owner       TEXT,
    lease_until TEXT,
    settled_at  TEXT,
    last_error  TEXT,
    UNIQUE (receiver, fingerprint, seq),
    CHECK ((state = 'leased') = (lease_until IS NOT NULL))
);

-- What is still to be sent, and what must be sent before it.
CREATE INDEX outbox_unsettled ON outbox (receiver, fingerprint, seq) WHERE state IN ('queued', 'leased');
CREATE INDEX outbox_newest ON outbox (created_at, id);

CREATE TABLE dead_letters (
    id         TEXT PRIMARY KEY,
    -- SHA-256 of dataset, batch, entry and key: they may be longer than an index takes.
    identity   TEXT NOT NULL UNIQUE,
    dataset    TEXT NOT NULL,
    database   INTEGER NOT NULL,
    queue      TEXT NOT NULL,
    batch      TEXT NOT NULL,
    entry      BLOB NOT NULL,
    key        TEXT NOT NULL,
    reason     TEXT NOT NULL,
    detail     TEXT NOT NULL,
    body       BLOB,
    size_bytes INTEGER,
    created_at TEXT NOT NULL
);

CREATE INDEX dead_letter_reason ON dead_letters (dataset, reason, created_at);
