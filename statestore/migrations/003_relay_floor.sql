-- millrace:oldest 1
-- Up to here the outbox holds no row of the shard, and none will come. Whoever takes
-- the shard over need not walk over what was deleted there.
ALTER TABLE millrace.relay_shards ADD COLUMN floor bigint NOT NULL DEFAULT 0;

-- Whoever may still add a row must show in the snapshots of the relay before it
-- draws the row's id. An insert would draw ids first and take its transaction id
-- after that.
CREATE FUNCTION millrace.take_transaction_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN NULL;
END $$;

CREATE TRIGGER take_transaction_id BEFORE INSERT ON millrace.outbox
    FOR EACH STATEMENT EXECUTE FUNCTION millrace.take_transaction_id();
