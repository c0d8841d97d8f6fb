-- The next rows of shard $1 in order of their ids: at most $6, and none behind the
-- one that fills $7 bytes of data. They begin behind $2, or further back if one of
-- the transactions $3 is over, whose rows may have turned up behind its id in $4.
-- $5 are rows that have been read and are not yet deleted.
SELECT id, topic, key, event_id, event_type, content_type, headers, data, at
FROM (
    SELECT id, topic, key, event_id, event_type, content_type, headers::text AS headers, data, at,
           sum(COALESCE(octet_length(data), 0)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - COALESCE(octet_length(data), 0) AS before
    FROM (
        SELECT * FROM millrace.outbox
        WHERE shard = $1
          AND id > LEAST($2::bigint, (
              SELECT min(o.after)
              FROM unnest($3::text[], $4::bigint[]) AS o (xid, after)
              WHERE pg_visible_in_snapshot(o.xid::xid8, pg_current_snapshot())))
          AND id <> ALL ($5::bigint[])
        ORDER BY id
        LIMIT $6
    ) AS next
) AS sized
WHERE before < $7
ORDER BY id
