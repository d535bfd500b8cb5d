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

-- A queue's count of sealings and finishings.
CREATE TABLE IF NOT EXISTS sequences (
    database INTEGER NOT NULL,
    queue    TEXT    NOT NULL,
    number   INTEGER NOT NULL,
    PRIMARY KEY (database, queue)
) STRICT, WITHOUT ROWID;

-- Finished batches stay for two days, with the marks of their loaded readings, and so that a process that slept through the
-- end cannot begin one again. `finishing` is the number of the finishing.
CREATE TABLE IF NOT EXISTS batches (
    id          INTEGER PRIMARY KEY,
    database    INTEGER NOT NULL,
    queue       TEXT    NOT NULL,
    batch       TEXT    NOT NULL,
    owner       TEXT,
    lease_ends  INTEGER NOT NULL DEFAULT 0,
    finished_at INTEGER,
    finishing   INTEGER,
    UNIQUE (database, queue, batch)
) STRICT;

CREATE TABLE IF NOT EXISTS claimed (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    entry    BLOB    NOT NULL,
    PRIMARY KEY (batch_id, position)
) STRICT, WITHOUT ROWID;

-- `began`: the queue's count when the reading began. `sealed`: the number of its sealing.
-- `loaded`: its batch was finished, and it is why the batch is kept.
CREATE TABLE IF NOT EXISTS readings (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    number   INTEGER NOT NULL,
    note     TEXT    NOT NULL,
    began    INTEGER NOT NULL,
    sealed   INTEGER,
    loaded   INTEGER NOT NULL DEFAULT FALSE,
    PRIMARY KEY (batch_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS marks (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    reading  INTEGER NOT NULL,
    position INTEGER NOT NULL,
    mark     BLOB    NOT NULL,
    PRIMARY KEY (batch_id, reading, position)
) STRICT, WITHOUT ROWID;
-- By the digest of the key, of those that were sent.
CREATE INDEX IF NOT EXISTS marks_by_key ON marks (substr(mark, 3, 8)) WHERE substr(mark, 1, 1) = x'01';

CREATE TABLE IF NOT EXISTS buried (
    batch_id INTEGER NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    PRIMARY KEY (batch_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS sent (
    database   INTEGER NOT NULL,
    queue      TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    digest     BLOB    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (database, queue, key)
) STRICT, WITHOUT ROWID;
