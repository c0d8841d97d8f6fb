-- Runs before the lengths are updated: a message's place counts from the length
-- that PostgreSQL has, not from what the turn was told.
INSERT INTO millrace.messages (conversation_id, seq, role, content, task_id, at)
SELECT u.conversation_id, c.length + u.ordinal, u.role, u.content, u.task_id, u.at
FROM unnest($2::text[], $3::integer[], $4::text[], $5::bigint[], $6::text[], $7::bytea[], $8::timestamptz[])
     AS u (task_id, redrive, conversation_id, ordinal, role, content, at)
JOIN millrace.completions k ON k.task_id = u.task_id AND k.redrive = u.redrive AND k.commit_token = $1
JOIN millrace.conversations c ON c.id = u.conversation_id
