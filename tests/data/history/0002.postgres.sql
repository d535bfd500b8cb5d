-- Written by hand beside migration 0002: a row of each kind that is new, as that version writes them.
INSERT INTO replicas VALUES ('host-1-01KB1', '2025-11-27T01:00:30.000000Z');
