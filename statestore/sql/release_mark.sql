UPDATE millrace.scheduled SET released_at = now(), headers = '[]', payload = '' WHERE task_id = ANY ($1)
