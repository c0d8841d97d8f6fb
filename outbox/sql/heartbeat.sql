-- Marks this relay as alive and counts those that are.
WITH beat AS (
    INSERT INTO millrace.relays (id, seen_at) VALUES ($1, now())
    ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at
), buried AS (
    DELETE FROM millrace.relays WHERE seen_at < now() - interval '1 minute' AND id <> $1
)
SELECT 1 + count(*) FROM millrace.relays WHERE id <> $1 AND seen_at >= now() - $2::interval
