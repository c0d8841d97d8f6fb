-- What was journaled for a group of tasks does not fit another group.
WITH deleted AS (
    DELETE FROM millrace.steps WHERE task_id = $1 AND redrive = $2 RETURNING name, output
)
SELECT count(*) FROM deleted WHERE output IS NOT NULL AND name <> $3
