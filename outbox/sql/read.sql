SELECT id, topic, key, event_id, event_type, content_type, headers::text, data, at
FROM millrace.outbox
WHERE shard = $1
ORDER BY id
LIMIT $2
