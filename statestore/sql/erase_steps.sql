-- What a turn of the conversation as it is now has journaled stays. So does an
-- intent: it holds nothing that was said, and its turn is about to end it.
-- $1  conversation id
-- $2  version of the tombstone
-- $3  name of the step that holds but the ids of tasks
-- $4  at most so many
DELETE FROM millrace.steps
WHERE (task_id, redrive, name) IN (
    SELECT task_id, redrive, name FROM millrace.steps
    WHERE conversation_id = $1 AND base_version < $2 AND output IS NOT NULL AND name <> $3
    LIMIT $4
)
