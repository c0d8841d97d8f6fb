-- The first outcome stands: what followed it was made from it.
UPDATE millrace.steps
SET output = $6, llm_calls = $7, input_tokens = $8, output_tokens = $9, finished_at = now()
WHERE task_id = $1 AND redrive = $2 AND name = $3 AND incarnation = $4 AND base_version = $5 AND output IS NULL
