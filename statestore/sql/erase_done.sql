-- Unless the conversation was erased once more in the meantime.
-- $1  conversation id
-- $2  version of the tombstone
-- $3  when it was erased
DELETE FROM millrace.erasures e
USING millrace.conversations c
WHERE e.conversation_id = $1 AND c.id = e.conversation_id AND c.erased_version = $2 AND c.erased_at = $3
