DELETE FROM millrace_inbox WHERE consumer = $1 AND applied_at < now() - $2::interval
