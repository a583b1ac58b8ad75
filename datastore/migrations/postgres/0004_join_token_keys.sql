-- The names and keys that have joined with a token: one that asks twice takes one use, and the same name with another key is
-- somebody else. The digest is empty for those that have joined before it was kept: no key is theirs.
ALTER TABLE join_token_uses
    ADD COLUMN key_sha256 BYTEA NOT NULL DEFAULT '' CHECK (length(key_sha256) IN (0, 32)),
    DROP CONSTRAINT join_token_uses_pkey,
    ADD PRIMARY KEY (token, node, key_sha256);
