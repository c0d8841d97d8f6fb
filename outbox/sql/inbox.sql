-- What a consumer has applied: a table in its own database.
CREATE TABLE IF NOT EXISTS millrace_inbox (
    consumer   text        NOT NULL CHECK (consumer <> ''),
    event_id   text        NOT NULL CHECK (event_id <> ''),
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);

CREATE INDEX IF NOT EXISTS millrace_inbox_applied_at ON millrace_inbox (applied_at);
