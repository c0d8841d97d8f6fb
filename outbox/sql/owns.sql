-- Where the owner $2 of shard $1 begins to read; no row if it is not the owner. Ids
-- that were handed out since the sequence was set back are not below the floor.
SELECT CASE WHEN s.floor > (SELECT last_value FROM millrace.outbox_id_seq) THEN 0 ELSE s.floor END
FROM millrace.relay_shards AS s WHERE s.shard = $1 AND s.owner = $2
