-- millrace:oldest 1
-- Conversations own state and order. The row is the lock that serialises
-- commits of one conversation.
CREATE TABLE millrace.conversations (
    id         text        PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 256),
    version    bigint      NOT NULL DEFAULT 0 CHECK (version >= 0),
    -- json, not jsonb: the handler gets back the text that it stored.
    state      json,
    length     bigint      NOT NULL DEFAULT 0 CHECK (length >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- History is append-only. Content is bytea because a payload may be any bytes
-- and text can hold neither NUL nor invalid UTF-8.
CREATE TABLE millrace.messages (
    conversation_id text        NOT NULL REFERENCES millrace.conversations (id),
    seq             bigint      NOT NULL CHECK (seq >= 1),
    role            text        NOT NULL CHECK (role <> ''),
    content         bytea       NOT NULL,
    task_id         text        NOT NULL,
    at              timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, seq)
);

-- One row per finished run of a task: the primary key is what makes effects
-- happen once.
CREATE TABLE millrace.completions (
    task_id         text        NOT NULL CHECK (task_id <> ''),
    redrive         integer     NOT NULL CHECK (redrive >= 0),
    conversation_id text,
    tenant          text        NOT NULL,
    type            text        NOT NULL,
    priority        text        NOT NULL,
    status          text        NOT NULL CHECK (status IN ('completed', 'failed', 'cancelled')),
    attempts        integer     NOT NULL CHECK (attempts >= 0),
    result          json,
    error           text        NOT NULL DEFAULT '',
    llm_calls       bigint      NOT NULL DEFAULT 0,
    input_tokens    bigint      NOT NULL DEFAULT 0,
    output_tokens   bigint      NOT NULL DEFAULT 0,
    -- Tells the transaction that wrote the row from all others, for a client that
    -- lost its connection before it learnt the outcome.
    commit_token    uuid        NOT NULL,
    started_at      timestamptz NOT NULL,
    finished_at     timestamptz NOT NULL,
    PRIMARY KEY (task_id, redrive)
);

-- The journal: an intent (output null) before a call, its outcome after. Rows go
-- when their task completes.
CREATE TABLE millrace.steps (
    task_id       text        NOT NULL,
    redrive       integer     NOT NULL CHECK (redrive >= 0),
    name          text        NOT NULL CHECK (name <> ''),
    request_hash  bytea       NOT NULL CHECK (octet_length(request_hash) = 32),
    base_version  bigint      NOT NULL CHECK (base_version >= 0),
    incarnation   uuid        NOT NULL,
    output        bytea,
    llm_calls     bigint      NOT NULL DEFAULT 0,
    input_tokens  bigint      NOT NULL DEFAULT 0,
    output_tokens bigint      NOT NULL DEFAULT 0,
    began_at      timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    PRIMARY KEY (task_id, redrive, name),
    CHECK ((output IS NULL) = (finished_at IS NULL))
);

-- Events wait here until the relay has published them. Ids of one key ascend in
-- commit order because whoever appends holds that key's lock.
CREATE TABLE millrace.outbox (
    id           bigint      GENERATED ALWAYS AS IDENTITY,
    shard        smallint    NOT NULL CHECK (shard BETWEEN 0 AND 7),
    topic        text        NOT NULL CHECK (topic <> ''),
    key          bytea,
    event_id     text        NOT NULL CHECK (event_id <> ''),
    event_type   text        NOT NULL CHECK (event_type <> ''),
    content_type text        NOT NULL DEFAULT '',
    -- Further record headers, as [{"k": name, "v": base64 value}, ...].
    headers      json,
    data         bytea,
    at           timestamptz NOT NULL,
    PRIMARY KEY (shard, id)
);

-- Who publishes which shard. A lease is only a hint that spares work: what keeps
-- two relays from publishing one row is Kafka's producer fencing.
CREATE TABLE millrace.relay_shards (
    shard       smallint    PRIMARY KEY CHECK (shard BETWEEN 0 AND 7),
    owner       uuid,
    leased_till timestamptz NOT NULL DEFAULT '-infinity'
);

CREATE TABLE millrace.relays (
    id        uuid        PRIMARY KEY,
    seen_at   timestamptz NOT NULL
);

CREATE TABLE millrace.dead_letters (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id         text        NOT NULL,
    redrive         integer     NOT NULL,
    conversation_id text,
    tenant          text        NOT NULL,
    type            text        NOT NULL,
    reason          text        NOT NULL CHECK (reason <> ''),
    detail          text        NOT NULL,
    stack           text        NOT NULL DEFAULT '',
    attempts        integer     NOT NULL,
    -- The record as it was read: where it lay and all that it held.
    topic           text        NOT NULL,
    partition       integer     NOT NULL,
    "offset"        bigint      NOT NULL,
    key             bytea,
    value           bytea,
    headers         json        NOT NULL,
    at              timestamptz NOT NULL
);

CREATE INDEX dead_letters_task ON millrace.dead_letters (task_id);
