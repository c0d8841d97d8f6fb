SELECT COALESCE(conversation_id, ''), CASE WHEN released_at IS NULL THEN run_at END
FROM millrace.scheduled WHERE task_id = $1
