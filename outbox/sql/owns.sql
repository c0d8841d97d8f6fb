SELECT EXISTS (SELECT FROM millrace.relay_shards WHERE shard = $1 AND owner = $2)
