INSERT INTO millrace.dead_letters
    (task_id, redrive, conversation_id, tenant, type, reason, detail, stack, attempts,
     topic, partition, "offset", key, value, headers, at)
SELECT $2::text, $3::integer, $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::integer,
       $11::text, $12::integer, $13::bigint, $14::bytea, $15::bytea, $16::json, $17::timestamptz
FROM millrace.completions k
WHERE k.task_id = $2 AND k.redrive = $3 AND k.commit_token = $1
