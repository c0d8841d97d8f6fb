-- $1 conversation id
SELECT version FROM millrace.conversations WHERE id = $1 FOR UPDATE
