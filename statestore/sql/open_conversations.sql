-- $1  conversation ids
SELECT id, version, state::text, length
FROM millrace.conversations
WHERE id = ANY($1::text[])
