-- Begins a walk if it is time for one, and says how far it is.
-- $1  what it is of
-- $2  how long after the begin of a walk the next begins
INSERT INTO millrace.retention_walks AS w (of, began) VALUES ($1, now())
ON CONFLICT (of) DO UPDATE SET
    page  = CASE WHEN w.began IS NULL THEN 0 ELSE w.page END,
    began = CASE WHEN w.began IS NOT NULL OR w.done > now() - $2::interval THEN w.began ELSE now() END
RETURNING page, began, EXTRACT(epoch FROM now() - COALESCE(done, began, now()))::float8
