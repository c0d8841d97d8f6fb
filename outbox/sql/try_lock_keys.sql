-- Those of the keys $1 that somebody else holds. All others are held from now on.
SELECT key FROM (
    SELECT key, pg_try_advisory_xact_lock(hashtextextended('millrace.outbox:' || key, 0)) AS held
    FROM unnest($1::text[]) AS key
) AS tried WHERE NOT held
