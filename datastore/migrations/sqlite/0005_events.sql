-- The log of events. Positions are given one after the other, so that none is missing between two that are kept.
CREATE TABLE event_log (
    position   INTEGER PRIMARY KEY,
    kept_at_ms INTEGER NOT NULL,
    end_bytes  INTEGER NOT NULL, -- of all events up to this one, those that are dropped among them
    event      BLOB    NOT NULL
) STRICT;

-- One row: the last position that was given, and the bytes of all events ever.
CREATE TABLE event_head (
    position INTEGER NOT NULL,
    bytes    INTEGER NOT NULL
) STRICT;
INSERT INTO event_head VALUES (0, 0);

-- Source and id of events that were kept lately, as a digest: a repeated one is known by it.
CREATE TABLE event_keys (
    key        BLOB    PRIMARY KEY CHECK (length(key) = 32),
    kept_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX event_keys_by_time ON event_keys (kept_at_ms);

-- Events that the seed has yet to publish: delayed ones, and those of changes of the datastore itself.
CREATE TABLE due_events (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    due_at_ms INTEGER NOT NULL,
    key       BLOB    NOT NULL UNIQUE CHECK (length(key) = 32),
    event     BLOB    NOT NULL
) STRICT;
CREATE INDEX due_events_by_time ON due_events (due_at_ms, number);

-- All up to its position is done with.
CREATE TABLE subscriptions (
    name          TEXT    PRIMARY KEY,
    patterns      TEXT    NOT NULL, -- with spaces between them
    position      INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Events that a subscription has given up. Those of NATS' streams have their positions there.
CREATE TABLE dead_events (
    subscription TEXT    NOT NULL,
    position     INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    died_at_ms   INTEGER NOT NULL,
    event        BLOB    NOT NULL,
    PRIMARY KEY (subscription, position)
) STRICT, WITHOUT ROWID;
