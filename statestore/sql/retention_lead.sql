-- Takes or renews the lease of $1 for $2, and says whether it has it.
UPDATE millrace.retention_leader
SET owner = $1, leased_till = now() + $2::interval
WHERE owner = $1 OR owner IS NULL OR leased_till < now()
