INSERT INTO millrace.outbox (shard, topic, key, event_id, event_type, content_type, headers, data, at)
VALUES ($1, $2, $3, $4, $5, $6, $7::json, $8, $9)
