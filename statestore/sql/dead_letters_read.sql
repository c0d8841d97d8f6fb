-- The last column says whether the next run of the task has ended.
SELECT d.id, d.task_id, d.redrive, COALESCE(d.conversation_id, ''), d.type, d.reason, d.detail, d.attempts,
       d.topic, d.partition, d."offset", d.at, d.tenant, COALESCE(k.priority, ''), d.redriven_at, COALESCE(d.redriven_as, 0),
       d.stack, d.key, d.value, d.headers::text, n.task_id IS NOT NULL
FROM millrace.dead_letters d
LEFT JOIN millrace.completions k ON k.task_id = d.task_id AND k.redrive = d.redrive
LEFT JOIN millrace.completions n ON n.task_id = d.task_id AND n.redrive = d.redrive + 1 AND d.reason <> 'event_unpublishable'
WHERE d.id = ANY ($1)
ORDER BY d.id
