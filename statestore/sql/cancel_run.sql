-- Which run of a task is the newest that is known of, whether it has ended, and
-- what is known of the task if it was held back. A redrive that is on its way has
-- no completion yet; the dead letter that it was made of says its number.
SELECT r.redrive, k.task_id IS NOT NULL,
       s.task_id IS NOT NULL, COALESCE(s.conversation_id, ''), COALESCE(s.tenant, ''), COALESCE(s.type, ''), COALESCE(s.priority, '')
FROM (SELECT COALESCE(max(redriven_as), 0) AS redrive FROM millrace.dead_letters WHERE task_id = $1) AS r
LEFT JOIN millrace.completions k ON k.task_id = $1 AND k.redrive = r.redrive
LEFT JOIN millrace.scheduled s ON s.task_id = $1
