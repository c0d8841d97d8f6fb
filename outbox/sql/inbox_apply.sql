-- A transaction with the same event waits here for the first one to end.
INSERT INTO millrace_inbox (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING
