-- millrace:oldest 4

-- An erased conversation leaves its row as a tombstone: a version that nobody has
-- run a turn on. Sequence numbers go on behind what was erased, so that whoever
-- reads on from a number misses nothing of what comes after. length is the last
-- number; what a reader calls length is what is left, length - erased.
ALTER TABLE millrace.conversations
    ADD COLUMN erased         bigint NOT NULL DEFAULT 0,
    ADD COLUMN erased_version bigint NOT NULL DEFAULT 0,
    ADD COLUMN erased_at      timestamptz,
    -- NOT VALID: every row that is there has 0, and need not be read for that.
    ADD CONSTRAINT erased_within_length CHECK (erased BETWEEN 0 AND length) NOT VALID;

-- Erasures whose rows are not all gone.
CREATE TABLE millrace.erasures (
    conversation_id text        PRIMARY KEY REFERENCES millrace.conversations (id),
    -- Not only history and state, but all that names the conversation.
    whole           boolean     NOT NULL,
    -- Dead letters with higher ids came after the erasure.
    dead_letters    bigint      NOT NULL,
    since           timestamptz NOT NULL DEFAULT now()
);

-- Who deletes what is no longer to be kept. A lease is only a hint that spares
-- work: two at once delete the same.
CREATE TABLE millrace.retention_leader (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    owner       uuid,
    leased_till timestamptz NOT NULL DEFAULT '-infinity'
);

INSERT INTO millrace.retention_leader DEFAULT VALUES;
