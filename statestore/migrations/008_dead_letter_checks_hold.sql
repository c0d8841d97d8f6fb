-- millrace:oldest 4
-- millrace:no-transaction

ALTER TABLE millrace.dead_letters VALIDATE CONSTRAINT dead_letters_task_id_given;
ALTER TABLE millrace.dead_letters VALIDATE CONSTRAINT dead_letters_redrive_counts;
ALTER TABLE millrace.dead_letters VALIDATE CONSTRAINT dead_letters_attempts_count;
ALTER TABLE millrace.dead_letters VALIDATE CONSTRAINT dead_letters_redriven_as_a_later_run;
