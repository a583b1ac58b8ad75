-- The names and keys that have joined with a token: one that asks twice takes one use, and the same name with another key is
-- somebody else. The digest is empty for those that have joined before it was kept: no key is theirs.
CREATE TABLE uses_with_keys (
    token      TEXT    NOT NULL REFERENCES join_tokens (id) ON DELETE CASCADE,
    node       TEXT    NOT NULL,
    key_sha256 BLOB    NOT NULL CHECK (length(key_sha256) IN (0, 32)),
    used_at_ms INTEGER NOT NULL,
    PRIMARY KEY (token, node, key_sha256)
) STRICT, WITHOUT ROWID;
INSERT INTO uses_with_keys (token, node, key_sha256, used_at_ms)
    SELECT token, node, x'', used_at_ms FROM join_token_uses;
DROP TABLE join_token_uses;
ALTER TABLE uses_with_keys RENAME TO join_token_uses;
