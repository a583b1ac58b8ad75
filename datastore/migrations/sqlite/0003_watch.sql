-- The public id under which an upload is watched. It belongs to one token for as long as the upload is known here.
ALTER TABLE uploads ADD COLUMN watch TEXT NOT NULL DEFAULT '';
CREATE INDEX uploads_by_watch ON uploads (watch) WHERE watch <> '';
