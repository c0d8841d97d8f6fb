-- A journal has served once its task is complete.
DELETE FROM millrace.steps s
USING unnest($2::text[], $3::integer[]) AS u (task_id, redrive)
JOIN millrace.completions k ON k.task_id = u.task_id AND k.redrive = u.redrive AND k.commit_token = $1
WHERE s.task_id = u.task_id AND s.redrive = u.redrive
