-- Ends the statements that select dead letters, whose table they call d. What is
-- not asked for is null.
WHERE (@ids::bigint[] IS NULL OR d.id = ANY (@ids))
  AND (@reason::text IS NULL OR d.reason = @reason)
  AND (@type::text IS NULL OR d.type = @type)
  AND (@conversation::text IS NULL OR d.conversation_id = @conversation)
  AND (@tenant::text IS NULL OR d.tenant = @tenant)
  AND (@topic::text IS NULL OR d.topic = @topic)
  AND (@task::text IS NULL OR d.task_id = @task)
  AND (@since::timestamptz IS NULL OR d.at >= @since)
  AND (@until::timestamptz IS NULL OR d.at < @until)
  AND d.id > @after
  AND (@last::bigint IS NULL OR d.id <= @last)
  AND (@redriven OR d.redriven_at IS NULL)
