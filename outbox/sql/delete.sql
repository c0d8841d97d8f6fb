-- Deletes published rows and says with which transaction.
WITH gone AS (DELETE FROM millrace.outbox WHERE shard = $1 AND id = ANY ($2))
SELECT pg_current_xact_id()::text
