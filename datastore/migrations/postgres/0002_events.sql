-- The log of events. Positions are given one after the other by whoever holds the row of `event_head`, so that none is
-- missing between two that are kept, and none appears behind a later one.
CREATE TABLE event_log (
    position   BIGINT PRIMARY KEY,
    kept_at_ms BIGINT NOT NULL,
    end_bytes  BIGINT NOT NULL, -- of all events up to this one, those that are dropped among them
    event      BYTEA  NOT NULL
);

-- One row: the last position that was given, and the bytes of all events ever.
CREATE TABLE event_head (
    position BIGINT NOT NULL,
    bytes    BIGINT NOT NULL
);
INSERT INTO event_head VALUES (0, 0);

-- Source and id of events that were kept lately, as a digest: a repeated one is known by it.
CREATE TABLE event_keys (
    key        BYTEA  PRIMARY KEY CHECK (length(key) = 32),
    kept_at_ms BIGINT NOT NULL
);
CREATE INDEX event_keys_by_time ON event_keys (kept_at_ms);

-- Events that the seed has yet to publish: delayed ones, and those of changes of the datastore itself.
CREATE TABLE due_events (
    number    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    due_at_ms BIGINT NOT NULL,
    key       BYTEA  NOT NULL UNIQUE CHECK (length(key) = 32),
    event     BYTEA  NOT NULL
);
CREATE INDEX due_events_by_time ON due_events (due_at_ms, number);

-- All up to its position is done with.
CREATE TABLE subscriptions (
    name          TEXT   COLLATE "C" PRIMARY KEY,
    patterns      TEXT   NOT NULL, -- with spaces between them
    position      BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL
);

-- Events that a subscription has given up. Those of NATS' streams have their positions there.
CREATE TABLE dead_events (
    subscription TEXT   COLLATE "C" NOT NULL,
    position     BIGINT NOT NULL,
    attempts     BIGINT NOT NULL,
    died_at_ms   BIGINT NOT NULL,
    event        BYTEA  NOT NULL,
    PRIMARY KEY (subscription, position)
);
