-- Less than deadlock_timeout, which is a second: it is the migration that gives way,
-- and never a worker. The other two limits may be set for the role.
SET LOCAL lock_timeout = '500ms';
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
