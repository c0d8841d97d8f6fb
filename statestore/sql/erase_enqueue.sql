-- $1  conversation id
-- $2  whether all goes that names the conversation
INSERT INTO millrace.erasures (conversation_id, whole, dead_letters)
SELECT c.id, $2, CASE WHEN s.is_called THEN s.last_value ELSE 0 END
FROM millrace.conversations c, millrace.dead_letters_id_seq s
WHERE c.id = $1
ON CONFLICT (conversation_id) DO UPDATE
SET whole = erasures.whole OR excluded.whole,
    dead_letters = CASE WHEN excluded.whole THEN excluded.dead_letters ELSE erasures.dead_letters END
