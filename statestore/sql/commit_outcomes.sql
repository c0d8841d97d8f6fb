SELECT k.task_id, k.redrive, k.commit_token
FROM unnest($1::text[], $2::integer[]) AS u (task_id, redrive)
JOIN millrace.completions k USING (task_id, redrive)
