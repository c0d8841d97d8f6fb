-- millrace:oldest 4

-- What completions have been held to from the start.
ALTER TABLE millrace.dead_letters
    ADD CONSTRAINT dead_letters_task_id_given CHECK (task_id <> '') NOT VALID,
    ADD CONSTRAINT dead_letters_redrive_counts CHECK (redrive >= 0) NOT VALID,
    ADD CONSTRAINT dead_letters_attempts_count CHECK (attempts >= 0) NOT VALID,
    ADD CONSTRAINT dead_letters_redriven_as_a_later_run CHECK (redriven_as > redrive) NOT VALID;
