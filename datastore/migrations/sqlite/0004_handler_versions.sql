-- The versions of the table of handlers. A version of the table is the rows of `handlers` and `former_handlers` that were
-- there then, so that each version costs what it changed.
ALTER TABLE handlers ADD COLUMN disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1));
-- The version that it came with as it is.
ALTER TABLE handlers ADD COLUMN since INTEGER NOT NULL DEFAULT 1;
UPDATE handlers SET since = (SELECT version FROM table_version);

-- Handlers as they were from version `since` up to the one before `until`.
CREATE TABLE former_handlers (
    name      TEXT    NOT NULL,
    since     INTEGER NOT NULL,
    until     INTEGER NOT NULL,
    host      TEXT    NOT NULL,
    path      TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    pool      TEXT    NOT NULL,
    placement INTEGER NOT NULL,
    disabled  INTEGER NOT NULL,
    PRIMARY KEY (name, since)
) STRICT, WITHOUT ROWID;
CREATE INDEX former_handlers_by_end ON former_handlers (until);

-- Those that are kept, the present one among them.
CREATE TABLE handler_versions (
    version       INTEGER PRIMARY KEY,
    changed_at_ms INTEGER NOT NULL, -- 0: not known
    operator      TEXT    NOT NULL,
    what          TEXT    NOT NULL
) STRICT;
INSERT INTO handler_versions SELECT version, 0, '', 'where history begins' FROM table_version;
