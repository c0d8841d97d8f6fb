-- $1 conversation ids
SELECT FROM millrace.conversations WHERE id = ANY ($1::text[]) ORDER BY id FOR UPDATE
