-- millrace:oldest 4
-- millrace:safe workers that raise no fences go on, but what they complete beyond one runs again after a takeover, so none may start any more

-- How far the records of a partition may have been started: no turn of a record at
-- or above below has begun, on any worker. A topic that is made anew has another id.
CREATE TABLE millrace.fences (
    topic_id  uuid    NOT NULL,
    partition integer NOT NULL,
    below     bigint  NOT NULL CHECK (below >= 0),
    PRIMARY KEY (topic_id, partition)
);

-- Where tasks ran before there were fences, a partition without one says nothing.
-- The row of the nil UUID tells so.
INSERT INTO millrace.fences (topic_id, partition, below)
SELECT '00000000-0000-0000-0000-000000000000', 0, 0
WHERE EXISTS (SELECT FROM millrace.completions) OR EXISTS (SELECT FROM millrace.conversations);
