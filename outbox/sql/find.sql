SELECT id, event_id FROM millrace.outbox WHERE shard = $1 AND id = ANY ($2)
