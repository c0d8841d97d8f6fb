-- Moves an event that Kafka refuses for good to the dead letters.
WITH gone AS (
    DELETE FROM millrace.outbox WHERE shard = $1 AND id = $2
    RETURNING topic, key, event_id, event_type, content_type, headers, data, at
)
INSERT INTO millrace.dead_letters
    (task_id, redrive, conversation_id, tenant, type, reason, detail, attempts, topic, partition, "offset", key, value, headers, at)
SELECT event_id, 0, NULL, '', event_type, 'event_unpublishable', $3, 1, topic, -1, -1, key, data,
       -- With the content type and the time among the headers, the event can be put
       -- back as it was. Headers of another form are kept as they are.
       CASE WHEN json_typeof(COALESCE(headers, '[]')) <> 'array' THEN headers ELSE (
           SELECT COALESCE(json_agg(e), '[]') FROM (
               SELECT json_array_elements(COALESCE(headers, '[]')) AS e
               UNION ALL
               SELECT json_build_object('k', 'content-type', 'v', encode(convert_to(content_type, 'UTF8'), 'base64'))
               WHERE content_type <> ''
               UNION ALL
               SELECT json_build_object('k', 'ce_time', 'v', encode(convert_to(
                   to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'UTF8'), 'base64'))
           ) AS kept)
       END, now()
FROM gone
