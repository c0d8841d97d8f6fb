-- Whether a lost transaction has committed the completion of a task. The insert,
-- which is rolled back, waits for it as long as it may yet do so. A completion
-- that is there then is found by tx_settled.sql.
INSERT INTO millrace.completions (task_id, redrive, tenant, type, priority, status, attempts, commit_token, started_at, finished_at)
VALUES ($1, $2, '', '', '', 'cancelled', 0, $3, now(), now())
ON CONFLICT (task_id, redrive) DO NOTHING
