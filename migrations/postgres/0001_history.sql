-- Runs, alerts with their messages, and dead letters. The SQLite twin of this file has the same tables.

CREATE TABLE jobs (
    name       TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    schedule   TEXT,
    timezone   TEXT NOT NULL,
    retired_at TIMESTAMPTZ
);

CREATE TABLE job_runs (
    id          TEXT PRIMARY KEY,
    job         TEXT NOT NULL,
    slot        TIMESTAMPTZ,
    attempt     BIGINT NOT NULL,
    trigger     TEXT NOT NULL,
    state       TEXT NOT NULL,
    cause       TEXT,
    slots       BIGINT NOT NULL,
    exclusive   BOOLEAN NOT NULL,
    owner       TEXT NOT NULL,
    host        TEXT NOT NULL,
    version     TEXT NOT NULL,
    lease_until TIMESTAMPTZ,
    created_at  TIMESTAMPTZ NOT NULL,
    started_at  TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    duration_ms BIGINT,
    rows        BIGINT,
    error       TEXT,
    findings    JSON NOT NULL,
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
    labels      JSON NOT NULL,
    severity    TEXT NOT NULL,
    state       TEXT NOT NULL,
    summary     TEXT NOT NULL,
    starts_at   TIMESTAMPTZ NOT NULL,
    ends_at     TIMESTAMPTZ,
    seq         BIGINT NOT NULL
);

CREATE TABLE outbox (
    id          TEXT PRIMARY KEY,
    receiver    TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    seq         BIGINT NOT NULL,
    event       TEXT NOT NULL,
    notice      JSON NOT NULL,
    state       TEXT NOT NULL,
    attempts    BIGINT NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    next_at     TIMESTAMPTZ NOT NULL,
    owner       TEXT,
    lease_until TIMESTAMPTZ,
    settled_at  TIMESTAMPTZ,
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
    database   BIGINT NOT NULL,
    queue      TEXT NOT NULL,
    batch      TEXT NOT NULL,
    entry      BYTEA NOT NULL,
    key        TEXT NOT NULL,
    reason     TEXT NOT NULL,
    detail     TEXT NOT NULL,
    body       BYTEA,
    size_bytes BIGINT,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE INDEX dead_letter_reason ON dead_letters (dataset, reason, created_at);
