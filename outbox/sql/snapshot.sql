-- Opens a read: the snapshot that it works with, and when the server started. With
-- statistics from when the outbox was empty, the planner would sort the whole table
-- for every batch; what is left to it is to walk the primary key.
SELECT pg_current_snapshot()::text, pg_postmaster_start_time(),
       set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)
