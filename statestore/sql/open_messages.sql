-- $1  conversation ids
-- $2  how many messages of each, the newest
SELECT wanted.id, newest.seq, newest.role, newest.content, newest.task_id, newest.at
FROM unnest($1::text[]) AS wanted (id)
CROSS JOIN LATERAL (
	SELECT seq, role, content, task_id, at
	FROM millrace.messages
	WHERE conversation_id = wanted.id
	  -- Rows of what was erased may still be there.
	  AND seq > (SELECT erased FROM millrace.conversations WHERE id = wanted.id)
	ORDER BY seq DESC
	LIMIT $2
) AS newest
ORDER BY wanted.id, newest.seq
