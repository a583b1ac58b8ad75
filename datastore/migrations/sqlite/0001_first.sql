-- Sizes are bytes, times Unix milliseconds, unless a column says otherwise. 0 stands for "no limit" where the protocol
-- says so. A migration that was released is never edited.

-- Content, by its storage reference. Its encoding and stored size are those of the first upload of it.
CREATE TABLE files (
    reference     TEXT    PRIMARY KEY,
    size          INTEGER NOT NULL CHECK (size >= 0),
    stored_size   INTEGER NOT NULL CHECK (stored_size >= 0),
    encoding      TEXT    NOT NULL CHECK (encoding IN ('identity', 'gzip')),
    content_type  TEXT    NOT NULL,
    stored        INTEGER NOT NULL CHECK (stored IN (0, 1)), -- 0: only staged on `node`
    node          TEXT    NOT NULL,
    stored_sha256 TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What a virtual host shows under a path.
CREATE TABLE sites (
    host          TEXT    NOT NULL,
    path          TEXT    NOT NULL,
    reference     TEXT    NOT NULL REFERENCES files (reference),
    content_type  TEXT    NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    PRIMARY KEY (host, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX sites_by_reference ON sites (reference);

CREATE TABLE tokens (
    id            TEXT    PRIMARY KEY,
    secret_sha256 BLOB    NOT NULL CHECK (length(secret_sha256) = 32),
    host          TEXT    NOT NULL, -- pattern
    path_prefix   TEXT    NOT NULL,
    max_bytes     INTEGER NOT NULL CHECK (max_bytes >= 0),
    quota_bytes   INTEGER NOT NULL CHECK (quota_bytes >= 0),
    uses          INTEGER NOT NULL CHECK (uses >= 0),
    expires_at_ms INTEGER NOT NULL,
    uses_taken    INTEGER NOT NULL DEFAULT 0 CHECK (uses_taken >= 0),
    bytes_taken   INTEGER NOT NULL DEFAULT 0 CHECK (bytes_taken >= 0),
    created_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What an upload has taken of its token, and how it ended. Kept for a while after the end, so that a repeated call is
-- known as one. An aborted upload that never began has a row too, without a token: it can't begin any more.
CREATE TABLE uploads (
    id             TEXT    PRIMARY KEY,
    state          TEXT    NOT NULL CHECK (state IN ('open', 'completed', 'aborted')),
    token          TEXT    REFERENCES tokens (id),
    host           TEXT    NOT NULL,
    path           TEXT    NOT NULL,
    reserved_bytes INTEGER NOT NULL CHECK (reserved_bytes >= 0),
    reference      TEXT    REFERENCES files (reference),
    existed        INTEGER NOT NULL DEFAULT 0 CHECK (existed IN (0, 1)),
    begun_at_ms    INTEGER NOT NULL,
    CHECK (state = 'aborted' OR token IS NOT NULL),
    CHECK ((state = 'completed') = (reference IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX uploads_by_age ON uploads (begun_at_ms);
CREATE INDEX uploads_by_token ON uploads (token);
CREATE INDEX uploads_by_reference ON uploads (reference);

CREATE TABLE handlers (
    name      TEXT    PRIMARY KEY,
    host      TEXT    NOT NULL,
    path      TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    pool      TEXT    NOT NULL,
    placement INTEGER NOT NULL,
    UNIQUE (host, path)
) STRICT, WITHOUT ROWID;

-- One row: the version that the table of handlers has come to.
CREATE TABLE table_version (
    version INTEGER NOT NULL
) STRICT;
INSERT INTO table_version VALUES (1);

-- Versions are never given twice. A build is served once it is complete; what broke off is removed by the next deployment.
CREATE TABLE builds (
    version        INTEGER PRIMARY KEY AUTOINCREMENT,
    host           TEXT    NOT NULL, -- pattern
    complete       INTEGER NOT NULL DEFAULT 0 CHECK (complete IN (0, 1)),
    digest         TEXT    NOT NULL DEFAULT '',
    assets         INTEGER NOT NULL DEFAULT 0,
    bytes          INTEGER NOT NULL DEFAULT 0,
    deployed_at_ms INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX builds_by_host ON builds (host, version);

CREATE TABLE assets (
    build        INTEGER NOT NULL REFERENCES builds (version) ON DELETE CASCADE,
    path         TEXT    NOT NULL,
    content_type TEXT    NOT NULL,
    identity     BLOB    NOT NULL,
    gzip         BLOB    NOT NULL,
    brotli       BLOB    NOT NULL,
    PRIMARY KEY (build, path)
) STRICT;

CREATE TABLE members (
    pool     TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    address  TEXT    NOT NULL,
    zone     TEXT    NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (pool, id)
) STRICT, WITHOUT ROWID;

-- Without a deadline: that is counted by the running process' own clock. `ended` is set before anybody is told that
-- nobody holds the lease, so that no renewal can revive it, not even after a restart.
CREATE TABLE leases (
    name   TEXT    PRIMARY KEY,
    holder TEXT    NOT NULL,
    term   INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL CHECK (ttl_ms > 0),
    ended  INTEGER NOT NULL CHECK (ended IN (0, 1))
) STRICT, WITHOUT ROWID;
