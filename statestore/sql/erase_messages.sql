-- $1  conversation id
-- $2, $3  the first and the last sequence number
DELETE FROM millrace.messages WHERE conversation_id = $1 AND seq BETWEEN $2 AND $3
