UPDATE millrace.relay_shards SET leased_till = now() + $2::interval WHERE owner = $1 RETURNING shard
