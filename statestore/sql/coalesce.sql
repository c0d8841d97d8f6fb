-- Journals which tasks a turn answers along with its own, or returns those that
-- the journal holds.
-- $1, $2  the turn's own task
-- $3      name of the step
-- $4, $5  the others, in order
-- $6      incarnation
WITH held AS (
    SELECT output FROM millrace.steps WHERE task_id = $1 AND redrive = $2 AND name = $3
), open AS (
    SELECT u.id, u.redrive, u.place
    FROM unnest($4::text[], $5::integer[]) WITH ORDINALITY AS u (id, redrive, place)
    WHERE NOT EXISTS (SELECT FROM millrace.completions c WHERE c.task_id = u.id AND c.redrive = u.redrive)
      AND NOT EXISTS (SELECT FROM millrace.steps s WHERE s.task_id = u.id AND s.redrive = u.redrive)
), members AS (
    SELECT convert_to(json_agg(json_build_object('id', id, 'redrive', redrive) ORDER BY place)::text, 'UTF8') AS output
    FROM open
), begun AS (
    -- A run of the task alone has begun steps, which fit that run.
    SELECT EXISTS (SELECT FROM millrace.steps WHERE task_id = $1 AND redrive = $2) AS yes
), inserted AS (
    INSERT INTO millrace.steps (task_id, redrive, name, request_hash, base_version, incarnation, output, finished_at)
    SELECT $1, $2, $3, sha256(members.output), 0, $6, members.output, now()
    FROM members, begun
    WHERE members.output IS NOT NULL AND NOT begun.yes
    ON CONFLICT DO NOTHING
    RETURNING output
)
SELECT (SELECT output FROM held), (SELECT output FROM inserted), members.output IS NOT NULL AND NOT begun.yes
FROM members, begun
