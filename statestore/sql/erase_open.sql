-- An erasure whose rows are not all gone, and where its messages begin.
-- $1  conversation id
SELECT c.erased_version, c.erased, c.erased_at, e.whole, e.dead_letters,
       COALESCE((SELECT min(seq) FROM millrace.messages WHERE conversation_id = $1), c.erased + 1)
FROM millrace.erasures e
JOIN millrace.conversations c ON c.id = e.conversation_id
WHERE e.conversation_id = $1
