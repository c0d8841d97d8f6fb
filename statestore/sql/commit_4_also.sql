-- Tasks end along with the turn's own one or not at all. They are inserted with
-- all others, in one order, so that transactions cannot deadlock; those whose
-- turn did not come in are taken out again.
DELETE FROM millrace.completions k
USING unnest($2::text[], $3::integer[], $4::text[], $5::integer[]) AS u (task_id, redrive, leader_id, leader_redrive)
WHERE k.task_id = u.task_id AND k.redrive = u.redrive AND k.commit_token = $1
  AND NOT EXISTS (SELECT FROM millrace.completions l
                  WHERE l.task_id = u.leader_id AND l.redrive = u.leader_redrive AND l.commit_token = $1)
