-- The daemons that are up: each says so again and again. While this database cannot be asked, each slot is one of theirs.

CREATE TABLE replicas (
    owner       TEXT PRIMARY KEY,
    lease_until TIMESTAMPTZ NOT NULL
);
