-- millrace:oldest 4
-- millrace:no-transaction

-- Reads the table under a lock that lets turns through.
ALTER TABLE millrace.conversations VALIDATE CONSTRAINT erased_within_length;
