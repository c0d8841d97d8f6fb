-- Deletes completions of some pages that are older than $3, at most $4 of them, and
-- returns how many and the page of the last one. The clock of a worker may be behind,
-- so PostgreSQL's counts as well. What a dead letter or a task that is held back may
-- still ask for stays. Scalar subqueries remain look-ups, one for each old row, and
-- keep the rows in the order of the table.
-- $1, $2  from the first place to before the second
WITH old AS MATERIALIZED (
    SELECT k.ctid AS place
    FROM millrace.completions k
    WHERE k.ctid >= $1 AND k.ctid < $2
      AND GREATEST(k.finished_at, k.committed_at) < now() - $3::interval
      AND (SELECT true FROM millrace.dead_letters d WHERE d.task_id = k.task_id LIMIT 1) IS NULL
      AND (SELECT true FROM millrace.scheduled s WHERE s.task_id = k.task_id) IS NULL
    LIMIT $4
    FOR UPDATE OF k SKIP LOCKED
), gone AS (
    DELETE FROM millrace.completions k USING old WHERE k.ctid = old.place
)
SELECT count(*), COALESCE(max((place::text::point)[0]), 0)::bigint FROM old
