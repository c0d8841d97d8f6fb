-- A conversation whose first task is held back until its time has no row yet.
-- $1  conversation id
INSERT INTO millrace.conversations (id)
SELECT $1 WHERE EXISTS (SELECT FROM millrace.scheduled WHERE conversation_id = $1 AND released_at IS NULL)
ON CONFLICT (id) DO NOTHING
