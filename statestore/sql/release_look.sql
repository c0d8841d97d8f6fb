-- Whether $1 leads, the time, and in how many seconds the next task is due, none before $3.
-- Who does not lead takes a lease that has run out; who leads renews his with half
-- of it to go. It does not wait for the row: a release holds it.
WITH leads AS (
    UPDATE millrace.release_leader SET owner = $1, leased_till = now() + $2::interval
    WHERE one = (
        SELECT one FROM millrace.release_leader
        WHERE owner IS NULL OR leased_till < now() OR owner = $1 AND leased_till < now() + $2::interval / 2
        FOR UPDATE SKIP LOCKED)
    RETURNING one
)
SELECT EXISTS (SELECT FROM leads) OR EXISTS (SELECT FROM millrace.release_leader WHERE owner = $1 AND leased_till >= now()),
       now(),
       (SELECT extract(epoch FROM run_at - now())::float8 FROM millrace.scheduled
        WHERE released_at IS NULL AND run_at >= $3 ORDER BY run_at, seq LIMIT 1)
