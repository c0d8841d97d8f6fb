-- Records an intent, or returns the step as it is.
WITH held AS (
    SELECT request_hash, base_version, output, llm_calls, input_tokens, output_tokens
    FROM millrace.steps
    WHERE task_id = $1 AND redrive = $2 AND name = $3
), inserted AS (
    INSERT INTO millrace.steps (task_id, redrive, name, request_hash, base_version, incarnation, conversation_id)
    SELECT $1, $2, $3, $4, $5, $6, $7
    WHERE NOT EXISTS (SELECT FROM held)
    ON CONFLICT DO NOTHING
    RETURNING request_hash, base_version
)
SELECT false, request_hash, base_version, output, llm_calls, input_tokens, output_tokens FROM held
UNION ALL
SELECT true, request_hash, base_version, NULL, 0, 0, 0 FROM inserted
