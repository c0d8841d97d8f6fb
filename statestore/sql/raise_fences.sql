WITH raised AS (
    SELECT topic_id, partition, below, place
    FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) WITH ORDINALITY AS u (topic_id, partition, below, place)
), written AS (
    INSERT INTO millrace.fences AS f (topic_id, partition, below)
    SELECT topic_id, partition, below FROM raised ORDER BY topic_id, partition
    ON CONFLICT (topic_id, partition) DO UPDATE SET below = excluded.below WHERE f.below < excluded.below
)
-- What was there before: this part does not see what the other one writes.
SELECT coalesce(f.below, unknown.below, 0)
FROM raised r
LEFT JOIN millrace.fences f USING (topic_id, partition)
LEFT JOIN (
    SELECT 9223372036854775807 AS below FROM millrace.fences WHERE topic_id = '00000000-0000-0000-0000-000000000000'
) unknown ON true
ORDER BY r.place
