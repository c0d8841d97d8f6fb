-- Makes the row the tombstone of all that there was. A conversation that no turn
-- has touched since it was erased keeps its version: there is no turn to be told.
-- $1  conversation id
UPDATE millrace.conversations
SET version = CASE WHEN version > erased_version OR version = 0 THEN version + 1 ELSE version END,
    erased_version = CASE WHEN version > erased_version OR version = 0 THEN version + 1 ELSE version END,
    erased = length,
    erased_at = clock_timestamp(),
    state = NULL
WHERE id = $1
RETURNING erased_version, erased_at
