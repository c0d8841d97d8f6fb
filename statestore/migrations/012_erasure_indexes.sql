-- millrace:oldest 4
-- millrace:no-transaction

-- A completion without a result and an error has nothing to erase, and no entry.
CREATE INDEX CONCURRENTLY IF NOT EXISTS completions_content ON millrace.completions (conversation_id, task_id, redrive)
    WHERE conversation_id IS NOT NULL AND (result IS NOT NULL OR error <> '');

CREATE INDEX CONCURRENTLY IF NOT EXISTS steps_conversation ON millrace.steps (conversation_id) WHERE conversation_id IS NOT NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_conversation ON millrace.dead_letters (conversation_id) WHERE conversation_id IS NOT NULL;
-- Records that can be no task, and events, go by their keys. A key may be longer
-- than an index takes; no conversation has such a one.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_key ON millrace.dead_letters ((CASE WHEN octet_length(key) <= 256 THEN key END))
    WHERE conversation_id IS NULL;
