-- The embedded cache. Times are milliseconds since 1970. The file holds what Redis would hold, see cache/mod.rs.
CREATE TABLE IF NOT EXISTS records (
    database   INTEGER NOT NULL,
    key        TEXT    NOT NULL,
    value      BLOB    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (database, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_end ON records (expires_at);

-- A queue's oldest entry has the lowest number.
CREATE TABLE IF NOT EXISTS waiting (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    database INTEGER NOT NULL,
    queue    TEXT    NOT NULL,
    entry    BLOB    NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS waiting_by_queue ON waiting (database, queue, number);

-- Finished batches stay for a day, so that a process that slept through the end cannot begin one again.
CREATE TABLE IF NOT EXISTS batches (
    id          INTEGER PRIMARY KEY,
    database    INTEGER NOT NULL,
    queue       TEXT    NOT NULL,
    batch       TEXT    NOT NULL,
    owner       TEXT,
    lease_ends  INTEGER NOT NULL DEFAULT 0,
    finished_at INTEGER,
    UNIQUE (database, queue, batch)
) STRICT;

CREATE TABLE IF NOT EXISTS claimed (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    entry    BLOB    NOT NULL,
    PRIMARY KEY (batch_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS readings (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    number   INTEGER NOT NULL,
    note     TEXT    NOT NULL,
    PRIMARY KEY (batch_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS marks (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    reading  INTEGER NOT NULL,
    position INTEGER NOT NULL,
    mark     BLOB    NOT NULL,
    PRIMARY KEY (batch_id, reading, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS buried (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    PRIMARY KEY (batch_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS uploaded (
    database   INTEGER NOT NULL,
    queue      TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (database, queue, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS sent (
    database   INTEGER NOT NULL,
    queue      TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    digest     BLOB    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (database, queue, key)
) STRICT, WITHOUT ROWID;
