UPDATE millrace.conversations c
SET version = c.version + 1,
    state = COALESCE(u.state::json, c.state),
    length = c.length + u.added,
    updated_at = now()
FROM unnest($2::text[], $3::integer[], $4::text[], $5::text[], $6::bigint[])
     AS u (task_id, redrive, conversation_id, state, added)
JOIN millrace.completions k ON k.task_id = u.task_id AND k.redrive = u.redrive AND k.commit_token = $1
WHERE c.id = u.conversation_id
