-- millrace:oldest 4

-- How far the retention has walked through a table, so that whoever takes over goes
-- on there. It finds what is old by walking, since an index on times would make every
-- commit pay for it.
CREATE TABLE millrace.retention_walks (
    of    text        PRIMARY KEY,
    -- The first page that is not walked yet.
    page  bigint      NOT NULL DEFAULT 0 CHECK (page >= 0),
    -- When the walk that is under way began. Null between two.
    began timestamptz,
    -- When the last walk that came to the end of the table began: what was too old
    -- then is gone.
    done  timestamptz
);
