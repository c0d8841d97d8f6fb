-- Keeps whoever else erases the conversation waiting for one batch.
-- $1  conversation id
SELECT FROM millrace.erasures WHERE conversation_id = $1 FOR UPDATE
