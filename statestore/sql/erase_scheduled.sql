-- One that has been released holds nothing any more.
-- $1  conversation id
-- $2  when it was erased
-- $3  at most so many
DELETE FROM millrace.scheduled
WHERE task_id IN (
    SELECT task_id FROM millrace.scheduled
    WHERE conversation_id = $1 AND released_at IS NULL AND made_at <= $2
    LIMIT $3
)
