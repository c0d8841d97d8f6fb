UPDATE millrace.dead_letters
SET redriven_at = clock_timestamp(),
    redriven_as = CASE WHEN reason <> 'event_unpublishable' THEN redrive + 1 END
WHERE id = ANY ($1)
