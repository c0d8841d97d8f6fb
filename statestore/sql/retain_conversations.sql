-- Makes tombstones of conversations of some pages that no turn has changed for $3, at
-- most $4 of them, and returns how many and the page of the last one. Their messages go
-- as those of erasures do. A conversation that a commit holds is passed over, and one
-- that was committed on since this statement began is looked at again under its lock,
-- and is not idle any more. One that a task is held back for, and one that is being
-- erased, wait.
-- $1, $2  from the first place to before the second
WITH old AS MATERIALIZED (
    SELECT c.id, c.ctid AS place
    FROM millrace.conversations c
    WHERE c.ctid >= $1 AND c.ctid < $2
      AND c.updated_at < now() - $3::interval
      AND (c.length > c.erased OR c.state IS NOT NULL)
      AND (SELECT true FROM millrace.scheduled s WHERE s.conversation_id = c.id AND s.released_at IS NULL LIMIT 1) IS NULL
      AND (SELECT true FROM millrace.erasures e WHERE e.conversation_id = c.id) IS NULL
    LIMIT $4
    FOR UPDATE OF c SKIP LOCKED
), buried AS (
    UPDATE millrace.conversations c
    SET version = version + 1, erased_version = version + 1, erased = length, erased_at = clock_timestamp(), state = NULL
    FROM old
    WHERE c.ctid = old.place
    RETURNING c.id
), waiting AS (
    INSERT INTO millrace.erasures (conversation_id, whole, dead_letters)
    SELECT id, false, 0 FROM buried
)
SELECT count(*), COALESCE(max((place::text::point)[0]), 0)::bigint FROM old
