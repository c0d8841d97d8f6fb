-- $1  consumer
-- $2  age
-- $3  at most so many
DELETE FROM millrace_inbox
WHERE consumer = $1 AND event_id IN (
    SELECT event_id FROM millrace_inbox
    WHERE consumer = $1 AND applied_at < now() - $2::interval
    ORDER BY applied_at
    LIMIT $3
)
