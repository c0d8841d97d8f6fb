SELECT id, task_id, redrive, COALESCE(conversation_id, ''), type, reason, detail, attempts,
       topic, partition, "offset", at
FROM millrace.dead_letters
WHERE id > $1
ORDER BY id
LIMIT $2
