-- Deletes dead letters of some pages that came, or were redriven, longer than $3 ago, at
-- most $4 of them, and returns how many and the page of the last one. One that a
-- redrive holds stays.
-- $1, $2  from the first place to before the second
WITH old AS MATERIALIZED (
    SELECT d.ctid AS place
    FROM millrace.dead_letters d
    WHERE d.ctid >= $1 AND d.ctid < $2
      AND GREATEST(d.at, d.redriven_at) < now() - $3::interval
    LIMIT $4
    FOR UPDATE OF d SKIP LOCKED
), gone AS (
    DELETE FROM millrace.dead_letters d USING old WHERE d.ctid = old.place
)
SELECT count(*), COALESCE(max((place::text::point)[0]), 0)::bigint FROM old
