-- Renews the leases of relay $1 and records where a successor may begin to read.
UPDATE millrace.relay_shards AS s
SET leased_till = now() + $2::interval,
    floor = COALESCE((SELECT f.floor FROM unnest($3::smallint[], $4::bigint[]) AS f (shard, floor) WHERE f.shard = s.shard), s.floor)
WHERE s.owner = $1 RETURNING s.shard
