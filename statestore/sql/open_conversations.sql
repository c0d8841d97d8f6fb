-- $1  conversation ids
SELECT id, version, state::text, length - erased, erased, erased_at IS NOT NULL AND version = erased_version
FROM millrace.conversations
WHERE id = ANY($1::text[])
