-- Who may join. Of a token's secret only a digest is kept; it is gone for good some time after its end.
CREATE TABLE join_tokens (
    id            TEXT    PRIMARY KEY,
    secret_sha256 BYTEA   NOT NULL CHECK (length(secret_sha256) = 32),
    kind          TEXT    NOT NULL,
    pools         TEXT    NOT NULL, -- with spaces between them
    uses          BIGINT  NOT NULL CHECK (uses >= 0), -- 0: any number
    expires_at_ms BIGINT  NOT NULL,
    created_at_ms BIGINT  NOT NULL,
    created_by    TEXT    NOT NULL,
    revoked       BOOLEAN NOT NULL DEFAULT false
);

-- The names that have joined with a token: one that asks twice takes one use.
CREATE TABLE join_token_uses (
    token      TEXT   NOT NULL REFERENCES join_tokens (id) ON DELETE CASCADE,
    node       TEXT   NOT NULL,
    used_at_ms BIGINT NOT NULL,
    PRIMARY KEY (token, node)
);

-- The names that may not join, and whose certificates count no more.
CREATE TABLE revocations (
    name     TEXT   PRIMARY KEY,
    operator TEXT   NOT NULL,
    at_ms    BIGINT NOT NULL
);
