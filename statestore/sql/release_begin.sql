-- Begins a release: one row if $1 is still the leader. The row is locked to the
-- end, so that no successor begins before that. A leader that falls silent in the
-- middle is ended by the server. The planner is to walk the index of what waits,
-- however small the table was when it last looked.
SELECT set_config('idle_in_transaction_session_timeout', '5s', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true)
FROM (SELECT FROM millrace.release_leader WHERE owner = $1 FOR UPDATE) AS mine
