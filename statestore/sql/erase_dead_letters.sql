-- $1  conversation id
-- $2  the highest id
-- $3  at most so many
DELETE FROM millrace.dead_letters
WHERE id IN (
    (SELECT id FROM millrace.dead_letters WHERE conversation_id = $1 AND id <= $2 LIMIT $3)
    UNION ALL
    (SELECT id FROM millrace.dead_letters
     WHERE conversation_id IS NULL AND (CASE WHEN octet_length(key) <= 256 THEN key END) = convert_to($1, 'UTF8') AND id <= $2 LIMIT $3)
)
