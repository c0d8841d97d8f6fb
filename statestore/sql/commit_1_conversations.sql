-- $1 conversation ids, sorted
INSERT INTO millrace.conversations (id)
SELECT unnest($1::text[])
ON CONFLICT (id) DO NOTHING
