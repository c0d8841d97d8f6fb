SELECT c.task_id, c.redrive
FROM unnest($1::text[], $2::integer[]) AS u (task_id, redrive)
JOIN millrace.completions c USING (task_id, redrive)
