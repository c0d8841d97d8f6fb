-- That a task has ended stays, because it keeps the task from being run again.
-- $1  conversation id
-- $2  when it was erased
-- $3, $4  the key to begin after
-- $5  at most so many
UPDATE millrace.completions k
SET result = NULL, error = ''
FROM (
    SELECT task_id, redrive FROM millrace.completions
    WHERE conversation_id = $1 AND (result IS NOT NULL OR error <> '')
      AND (committed_at IS NULL OR committed_at <= $2)
      AND (task_id, redrive) > ($3, $4)
    ORDER BY task_id, redrive
    LIMIT $5
) AS batch
WHERE k.task_id = batch.task_id AND k.redrive = batch.redrive
RETURNING k.task_id, k.redrive
