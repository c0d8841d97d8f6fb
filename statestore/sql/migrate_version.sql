-- What the schema is kept in. Asked for first, because CREATE … IF NOT EXISTS wants
-- the right to create also when there is nothing to create.
DO $$
BEGIN
    IF to_regnamespace('millrace') IS NULL THEN
        CREATE SCHEMA millrace;
    END IF;
    IF to_regclass('millrace.schema_version') IS NULL THEN
        CREATE TABLE millrace.schema_version (version integer NOT NULL);
        INSERT INTO millrace.schema_version (version) VALUES (0);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'millrace.schema_version'::regclass AND attname = 'oldest_program') THEN
        ALTER TABLE millrace.schema_version ADD COLUMN oldest_program integer NOT NULL DEFAULT 1 CHECK (oldest_program >= 1);
    END IF;
END $$;
