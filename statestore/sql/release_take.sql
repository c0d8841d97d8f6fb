-- The tasks that are due, in the order in which they are to be released: at most
-- $2, none behind the one that fills $3 bytes, none before $1, and none of the
-- conversations $4. Whoever else has locked a row is about to delete it: who is
-- not the leader $5 must lock none, or the leader would pass over them.
SELECT task_id, COALESCE(conversation_id, ''), type, priority, content_type, headers, payload, run_at,
       extract(epoch FROM now() - run_at)::float8,
       EXISTS (SELECT FROM millrace.completions k WHERE k.task_id = sized.task_id)
FROM (
    SELECT *, sum(octet_length(payload)) OVER (ORDER BY run_at, seq ROWS UNBOUNDED PRECEDING) - octet_length(payload) AS before
    FROM (
        SELECT task_id, seq, conversation_id, type, priority, content_type, headers::text AS headers, payload, run_at
        FROM millrace.scheduled
        WHERE released_at IS NULL AND run_at <= now() AND run_at >= $1
          AND EXISTS (SELECT FROM millrace.release_leader WHERE owner = $5)
          AND (conversation_id IS NULL OR conversation_id <> ALL ($4::text[]))
        ORDER BY run_at, seq
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) AS due
) AS sized
WHERE before < $3
ORDER BY run_at, seq
