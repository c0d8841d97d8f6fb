-- Which run of a task is the newest that is known of, and whether it has ended. A
-- redrive that is on its way has no completion yet; the dead letter that it was
-- made of says its number.
SELECT r.redrive, k.task_id IS NOT NULL
FROM (SELECT COALESCE(max(redriven_as), 0) AS redrive FROM millrace.dead_letters WHERE task_id = $1) AS r
LEFT JOIN millrace.completions k ON k.task_id = $1 AND k.redrive = r.redrive
