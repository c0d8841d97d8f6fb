-- The oldest transaction that holds a lock on a table of the schema.
SELECT a.pid, COALESCE(a.application_name, ''), COALESCE(a.state, 'unknown'), extract(epoch FROM clock_timestamp() - a.xact_start)::float8
FROM pg_stat_activity a
WHERE a.datname = current_database()
  AND a.pid <> pg_backend_pid()
  AND a.xact_start < clock_timestamp() - interval '500 milliseconds'
  AND EXISTS (
      SELECT FROM pg_locks l
      JOIN pg_class c ON c.oid = l.relation
      WHERE l.pid = a.pid AND l.granted AND c.relnamespace = to_regnamespace('millrace'))
ORDER BY a.xact_start
LIMIT 1
