-- How many tasks wait: counted up to 10,000, beyond that as the index was when it
-- was last vacuumed or analyzed.
SELECT CASE WHEN counted < 10000 THEN counted
            ELSE GREATEST(counted, (SELECT reltuples FROM pg_class WHERE oid = 'millrace.scheduled_waiting'::regclass)::bigint) END
FROM (SELECT count(*) AS counted FROM (SELECT FROM millrace.scheduled WHERE released_at IS NULL LIMIT 10000) AS head) AS h
