-- Sizes are bytes, times Unix milliseconds, unless a column says otherwise. 0 stands for "no limit" where the protocol
-- says so. A migration that was released is never edited.
--
-- Texts that are put in an order are compared by their bytes (COLLATE "C"), whatever the database's own collation is.
-- An entry of an index has at most 2704 bytes and a path up to 4096, so paths are found by their SHA-256 and put in
-- order by their first 500 characters: see `files.rs`.

-- Content, by its storage reference. Its encoding and stored size are those of the first upload of it.
CREATE TABLE files (
    reference     TEXT    COLLATE "C" PRIMARY KEY,
    size          BIGINT  NOT NULL CHECK (size >= 0),
    stored_size   BIGINT  NOT NULL CHECK (stored_size >= 0),
    encoding      TEXT    NOT NULL CHECK (encoding IN ('identity', 'gzip')),
    content_type  TEXT    NOT NULL,
    stored        BOOLEAN NOT NULL, -- false: only staged on `node`
    node          TEXT    NOT NULL,
    stored_sha256 TEXT    NOT NULL,
    created_at_ms BIGINT  NOT NULL
);

-- What a virtual host shows under a path.
CREATE TABLE sites (
    host          TEXT   COLLATE "C" NOT NULL,
    path          TEXT   COLLATE "C" NOT NULL,
    path_sha256   BYTEA  NOT NULL CHECK (length(path_sha256) = 32),
    reference     TEXT   COLLATE "C" NOT NULL REFERENCES files (reference),
    content_type  TEXT   NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    PRIMARY KEY (host, path_sha256)
);
CREATE INDEX sites_in_order ON sites (host, left(path, 500));
CREATE INDEX sites_by_reference ON sites (reference);

CREATE TABLE tokens (
    id            TEXT   COLLATE "C" PRIMARY KEY,
    secret_sha256 BYTEA  NOT NULL CHECK (length(secret_sha256) = 32),
    host          TEXT   NOT NULL, -- pattern
    path_prefix   TEXT   NOT NULL,
    max_bytes     BIGINT NOT NULL CHECK (max_bytes >= 0),
    quota_bytes   BIGINT NOT NULL CHECK (quota_bytes >= 0),
    uses          BIGINT NOT NULL CHECK (uses >= 0),
    expires_at_ms BIGINT NOT NULL,
    uses_taken    BIGINT NOT NULL DEFAULT 0 CHECK (uses_taken >= 0),
    bytes_taken   BIGINT NOT NULL DEFAULT 0 CHECK (bytes_taken >= 0),
    created_at_ms BIGINT NOT NULL
);

-- What an upload has taken of its token, and how it ended. Kept for a while after the end, so that a repeated call is
-- known as one. An aborted upload that never began has a row too, without a token: it can't begin any more.
CREATE TABLE uploads (
    id             TEXT    COLLATE "C" PRIMARY KEY,
    state          TEXT    NOT NULL CHECK (state IN ('open', 'completed', 'aborted')),
    token          TEXT    COLLATE "C" REFERENCES tokens (id),
    host           TEXT    NOT NULL,
    path           TEXT    NOT NULL,
    reserved_bytes BIGINT  NOT NULL CHECK (reserved_bytes >= 0),
    reference      TEXT    COLLATE "C" REFERENCES files (reference),
    existed        BOOLEAN NOT NULL DEFAULT false,
    begun_at_ms    BIGINT  NOT NULL,
    watch          TEXT    NOT NULL DEFAULT '', -- the public id under which it is watched, one token's own
    CHECK (state = 'aborted' OR token IS NOT NULL),
    CHECK ((state = 'completed') = (reference IS NOT NULL))
);
CREATE INDEX uploads_by_age ON uploads (begun_at_ms);
CREATE INDEX uploads_by_token ON uploads (token);
CREATE INDEX uploads_by_reference ON uploads (reference);
CREATE INDEX uploads_by_watch ON uploads (watch) WHERE watch <> '';

CREATE TABLE handlers (
    name      TEXT    COLLATE "C" PRIMARY KEY,
    host      TEXT    NOT NULL,
    path      TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    pool      TEXT    NOT NULL,
    placement INTEGER NOT NULL,
    disabled  BOOLEAN NOT NULL,
    since     BIGINT  NOT NULL, -- the version that it came with as it is
    UNIQUE (host, path)
);

-- Handlers as they were from version `since` up to the one before `until`: a version of the table is the rows of this and
-- of `handlers` that were there then, so that each version costs what it changed.
CREATE TABLE former_handlers (
    name      TEXT    COLLATE "C" NOT NULL,
    since     BIGINT  NOT NULL,
    until     BIGINT  NOT NULL,
    host      TEXT    NOT NULL,
    path      TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    pool      TEXT    NOT NULL,
    placement INTEGER NOT NULL,
    disabled  BOOLEAN NOT NULL,
    PRIMARY KEY (name, since)
);
CREATE INDEX former_handlers_by_end ON former_handlers (until);

-- The versions that are kept, the present one among them.
CREATE TABLE handler_versions (
    version       BIGINT PRIMARY KEY,
    changed_at_ms BIGINT NOT NULL, -- 0: not known
    operator      TEXT   NOT NULL,
    what          TEXT   NOT NULL
);
INSERT INTO handler_versions VALUES (1, 0, '', 'where history begins');

-- One row: the version that the table of handlers has come to. Whoever changes a handler holds it.
CREATE TABLE table_version (
    version BIGINT NOT NULL
);
INSERT INTO table_version VALUES (1);

-- Versions are never given twice. A build is served once it is complete; what broke off is removed by the next deployment.
CREATE TABLE builds (
    version        BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host           TEXT    COLLATE "C" NOT NULL, -- pattern
    complete       BOOLEAN NOT NULL DEFAULT false,
    digest         TEXT    NOT NULL DEFAULT '',
    assets         BIGINT  NOT NULL DEFAULT 0,
    bytes          BIGINT  NOT NULL DEFAULT 0,
    deployed_at_ms BIGINT  NOT NULL DEFAULT 0
);
CREATE INDEX builds_by_host ON builds (host, version);

CREATE TABLE assets (
    build        BIGINT NOT NULL REFERENCES builds (version) ON DELETE CASCADE,
    path         TEXT   COLLATE "C" NOT NULL,
    path_sha256  BYTEA  NOT NULL CHECK (length(path_sha256) = 32),
    content_type TEXT   NOT NULL,
    identity     BYTEA  NOT NULL,
    gzip         BYTEA  NOT NULL,
    brotli       BYTEA  NOT NULL,
    PRIMARY KEY (build, path_sha256)
);
CREATE INDEX assets_in_order ON assets (build, left(path, 500));

CREATE TABLE members (
    pool     TEXT   COLLATE "C" NOT NULL,
    id       TEXT   COLLATE "C" NOT NULL,
    address  TEXT   NOT NULL,
    zone     TEXT   NOT NULL,
    instance TEXT   NOT NULL, -- which of the processes of one name it is
    revision BIGINT NOT NULL,
    PRIMARY KEY (pool, id)
);

-- Without a deadline, for clocks differ and step: each datastore counts a grant's time from the moment at which it has
-- first seen it. `renewals` grows with each grant, so that a renewed one is another to all of them. `ended` is set
-- before anybody is told that nobody holds the lease, so that no renewal can revive it.
CREATE TABLE leases (
    name     TEXT    COLLATE "C" PRIMARY KEY,
    holder   TEXT    NOT NULL,
    term     BIGINT  NOT NULL,
    ttl_ms   BIGINT  NOT NULL CHECK (ttl_ms > 0),
    ended    BOOLEAN NOT NULL,
    renewals BIGINT  NOT NULL
);
