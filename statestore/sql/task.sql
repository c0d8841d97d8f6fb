SELECT COALESCE(conversation_id, ''), status, attempts, result::text,
       llm_calls, input_tokens, output_tokens, error, started_at, finished_at
FROM millrace.completions
WHERE task_id = $1
ORDER BY redrive DESC
LIMIT 1
