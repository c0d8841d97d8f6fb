-- millrace:oldest 4

-- What an erased conversation's tasks have journaled is found by it.
ALTER TABLE millrace.steps ADD COLUMN conversation_id text;
