-- $1 ids of conversations that may be new, sorted
INSERT INTO millrace.conversations (id)
SELECT unnest($1::text[])
ON CONFLICT (id) DO NOTHING
