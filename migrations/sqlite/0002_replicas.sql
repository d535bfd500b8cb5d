-- The daemons that are up. One process has this file, so here it is empty; the Postgres twin is not.

CREATE TABLE replicas (
    owner       TEXT PRIMARY KEY,
    lease_until TEXT NOT NULL
);
