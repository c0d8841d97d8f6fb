-- $1 keys
SELECT pg_advisory_xact_lock(k) FROM (
    SELECT DISTINCT hashtextextended('millrace.outbox:' || key, 0) AS k FROM unnest($1::text[]) AS key ORDER BY k
) AS locks
