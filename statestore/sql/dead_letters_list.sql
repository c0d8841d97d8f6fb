SELECT d.id, d.task_id, d.redrive, COALESCE(d.conversation_id, ''), d.type, d.reason, d.detail, d.attempts,
       d.topic, d.partition, d."offset", d.at, d.tenant, COALESCE(k.priority, ''), d.redriven_at, COALESCE(d.redriven_as, 0)
FROM millrace.dead_letters d
LEFT JOIN millrace.completions k ON k.task_id = d.task_id AND k.redrive = d.redrive
