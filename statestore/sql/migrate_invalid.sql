-- Indexes that CREATE INDEX CONCURRENTLY has left unfinished.
SELECT i.indexrelid::regclass::text
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relnamespace = to_regnamespace('millrace')
