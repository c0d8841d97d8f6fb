-- A turn that changes its conversation names the version it ran on and is left
-- out when that is no longer the version.
INSERT INTO millrace.completions
    (task_id, redrive, conversation_id, tenant, type, priority, status, attempts, result, error,
     llm_calls, input_tokens, output_tokens, commit_token, started_at, finished_at)
SELECT u.task_id, u.redrive, u.conversation_id, u.tenant, u.type, u.priority, u.status, u.attempts, u.result::json, u.error,
       u.calls, u.input, u.output, $1, u.started_at, u.finished_at
FROM unnest($2::text[], $3::integer[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::integer[], $11::text[], $12::text[], $13::bigint[], $14::bigint[], $15::bigint[],
            $16::timestamptz[], $17::timestamptz[])
     AS u (task_id, redrive, conversation_id, expected, tenant, type, priority, status,
           attempts, result, error, calls, input, output, started_at, finished_at)
LEFT JOIN millrace.conversations c ON c.id = u.conversation_id
WHERE u.expected IS NULL OR c.version = u.expected
ORDER BY u.task_id, u.redrive
ON CONFLICT (task_id, redrive) DO NOTHING
