SELECT commit_token FROM millrace.completions WHERE task_id = $1 AND redrive = $2
