-- millrace:oldest 4

-- Tasks that are held back until their time. One that was released stays for a
-- while without what it carried, so that a repeat of it is known as one. Whoever
-- erases a conversation deletes its rows here.
CREATE TABLE millrace.scheduled (
    task_id         text        PRIMARY KEY CHECK (task_id <> ''),
    -- Tells in which order tasks of the same time were sent.
    seq             bigint      GENERATED ALWAYS AS IDENTITY,
    run_at          timestamptz NOT NULL,
    conversation_id text        CHECK (octet_length(conversation_id) BETWEEN 1 AND 256),
    tenant          text        NOT NULL,
    type            text        NOT NULL CHECK (type <> ''),
    priority        text        NOT NULL CHECK (priority <> ''),
    content_type    text        NOT NULL,
    -- Further record headers, in the form of the outbox.
    headers         json        NOT NULL,
    payload         bytea       NOT NULL,
    made_at         timestamptz NOT NULL DEFAULT now(),
    released_at     timestamptz
);

CREATE INDEX scheduled_waiting ON millrace.scheduled (run_at, seq) WHERE released_at IS NULL;
CREATE INDEX scheduled_released ON millrace.scheduled (released_at, task_id) WHERE released_at IS NOT NULL;
CREATE INDEX scheduled_conversation ON millrace.scheduled (conversation_id) WHERE conversation_id IS NOT NULL;

-- Who releases. Every release holds this row from its first statement to its
-- commit, so that there are never two at a time; the lease only says who is to
-- bother.
CREATE TABLE millrace.release_leader (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    owner       uuid,
    leased_till timestamptz NOT NULL DEFAULT '-infinity'
);

INSERT INTO millrace.release_leader DEFAULT VALUES;
