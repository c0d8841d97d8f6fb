-- Forgets released tasks, among the $3 behind ($1, $2): those that have completed,
-- as a repeat finds their completion, and those whose record Kafka has dropped by
-- now. A completion has to be a minute old: a repeat that is being inserted may
-- have looked for it before it was there.
WITH looked AS (
    SELECT task_id, released_at FROM millrace.scheduled
    WHERE released_at IS NOT NULL AND (released_at, task_id) > ($1, $2)
    ORDER BY released_at, task_id
    LIMIT $3
), gone AS (
    DELETE FROM millrace.scheduled AS s USING looked
    WHERE s.task_id = looked.task_id AND (looked.released_at < now() - interval '7 days' OR EXISTS (
        SELECT FROM millrace.completions k WHERE k.task_id = looked.task_id AND k.finished_at < now() - interval '1 minute'))
)
SELECT released_at, task_id, count(*) OVER () FROM looked ORDER BY released_at DESC, task_id DESC LIMIT 1
