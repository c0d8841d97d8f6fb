UPDATE millrace.relay_shards
SET owner = $1, leased_till = now() + $2::interval
WHERE shard IN (
    SELECT shard FROM millrace.relay_shards
    WHERE owner IS NULL OR leased_till < now()
    ORDER BY shard
    LIMIT $3
    FOR UPDATE SKIP LOCKED
)
RETURNING shard
