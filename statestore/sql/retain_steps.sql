-- Deletes steps of some pages that no turn will ask for, at most $4 of them, and
-- returns how many and the page of the last one: those of tasks that have completed,
-- which a run that was taken over may have begun since, and those older than $3,
-- longer than a task goes on being tried. The ten minutes spare the rows of running
-- turns the look-up.
-- $1, $2  from the first place to before the second
WITH old AS MATERIALIZED (
    SELECT s.ctid AS place
    FROM millrace.steps s
    WHERE s.ctid >= $1 AND s.ctid < $2
      AND s.began_at < now() - interval '10 minutes'
      AND (GREATEST(s.began_at, s.finished_at) < now() - $3::interval
           OR (SELECT true FROM millrace.completions k WHERE k.task_id = s.task_id AND k.redrive = s.redrive))
    LIMIT $4
    FOR UPDATE OF s SKIP LOCKED
), gone AS (
    DELETE FROM millrace.steps s USING old WHERE s.ctid = old.place
)
SELECT count(*), COALESCE(max((place::text::point)[0]), 0)::bigint FROM old
