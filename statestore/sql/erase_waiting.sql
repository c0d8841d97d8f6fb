-- Erasures that are open, the oldest first, and how long the first has been.
SELECT conversation_id, EXTRACT(epoch FROM now() - since)::float8
FROM millrace.erasures
ORDER BY since
LIMIT $1
