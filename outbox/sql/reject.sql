-- Moves an event that Kafka refuses for good to the dead letters.
WITH gone AS (
    DELETE FROM millrace.outbox WHERE shard = $1 AND id = $2
    RETURNING topic, key, event_id, event_type, headers, data
)
INSERT INTO millrace.dead_letters
    (task_id, redrive, conversation_id, tenant, type, reason, detail, attempts, topic, partition, "offset", key, value, headers, at)
SELECT event_id, 0, NULL, '', event_type, 'event_unpublishable', $3, 1, topic, -1, -1, key, data, COALESCE(headers, '[]'), now()
FROM gone
