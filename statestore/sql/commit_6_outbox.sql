-- Ids are drawn in the order of the rows, under the conversation's lock: within a
-- key they ascend in commit order.
INSERT INTO millrace.outbox (shard, topic, key, event_id, event_type, content_type, headers, data, at)
SELECT u.shard, u.topic, u.key, u.event_id, u.event_type, u.content_type, u.headers::json, u.data, u.at
FROM unnest($2::text[], $3::integer[], $4::smallint[], $5::text[], $6::bytea[], $7::text[], $8::text[], $9::text[],
            $10::text[], $11::bytea[], $12::timestamptz[])
     WITH ORDINALITY
     AS u (task_id, redrive, shard, topic, key, event_id, event_type, content_type, headers, data, at, ordinal)
JOIN millrace.completions k ON k.task_id = u.task_id AND k.redrive = u.redrive AND k.commit_token = $1
ORDER BY u.ordinal
