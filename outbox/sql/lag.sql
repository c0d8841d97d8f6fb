-- What waits in the shards $1 behind the ids $2: the rows, counted up to 1,000 and
-- beyond that estimated from how densely those lie and the highest id, and the time
-- of the first.
SELECT l.shard, w.oldest,
       CASE WHEN w.counted < 1000 THEN w.counted
            ELSE (w.counted * ((newest.id - w.first + 1)::float8 / (w.last - w.first + 1)))::bigint END
FROM unnest($1::smallint[], $2::bigint[]) AS l (shard, after)
CROSS JOIN LATERAL (
    SELECT count(*) AS counted, min(id) AS first, max(id) AS last, min(at) AS oldest FROM (
        SELECT id, at FROM millrace.outbox WHERE shard = l.shard AND id > l.after ORDER BY id LIMIT 1000
    ) AS head
) AS w
LEFT JOIN LATERAL (
    SELECT id FROM millrace.outbox WHERE w.counted = 1000 AND shard = l.shard AND id > l.after ORDER BY id DESC LIMIT 1
) AS newest ON true
