UPDATE millrace.steps
SET request_hash = $4, base_version = $5, incarnation = $6,
    output = NULL, finished_at = NULL, llm_calls = 0, input_tokens = 0, output_tokens = 0, began_at = now()
-- Only what Begin has seen is started over: an outcome that arrived since stays.
WHERE task_id = $1 AND redrive = $2 AND name = $3 AND base_version = $7 AND (output IS NOT NULL) = $8
