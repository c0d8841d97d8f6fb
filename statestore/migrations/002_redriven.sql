-- millrace:oldest 1
-- What became of a dead letter: when it was put back, and as which redrive of its
-- task. An event that went back to the outbox has no number.
ALTER TABLE millrace.dead_letters
    ADD COLUMN redriven_at timestamptz,
    ADD COLUMN redriven_as integer CHECK (redriven_as >= 1),
    ADD CONSTRAINT redriven_as_needs_redriven_at CHECK (redriven_as IS NULL OR redriven_at IS NOT NULL);

CREATE INDEX dead_letters_waiting ON millrace.dead_letters (id) WHERE redriven_at IS NULL;
