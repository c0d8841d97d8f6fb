-- millrace:oldest 4

-- Under the lock of the conversation, PostgreSQL's clock tells the completions
-- before an erasure from those after it, which the clocks of workers do not. Rows
-- from before this column have none. now() would be when the transaction began,
-- before it had the lock.
ALTER TABLE millrace.completions ADD COLUMN committed_at timestamptz;
ALTER TABLE millrace.completions ALTER COLUMN committed_at SET DEFAULT clock_timestamp();
