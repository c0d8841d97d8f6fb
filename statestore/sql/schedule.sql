-- Holds tasks back. A task that is known already stays as it is: it waits, was
-- released, or has ended.
INSERT INTO millrace.scheduled (task_id, run_at, conversation_id, tenant, type, priority, content_type, headers, payload)
SELECT u.task_id, u.run_at, u.conversation_id, u.tenant, u.type, u.priority, u.content_type, u.headers::json, u.payload
FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bytea[])
     WITH ORDINALITY
     AS u (task_id, run_at, conversation_id, tenant, type, priority, content_type, headers, payload, ordinal)
WHERE NOT EXISTS (SELECT FROM millrace.completions k WHERE k.task_id = u.task_id)
ORDER BY u.ordinal
ON CONFLICT (task_id) DO NOTHING
