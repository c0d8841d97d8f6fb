-- Unless another has come to the end and begun anew: a leader that has slept through
-- its lease must not have a later walk pass pages over.
-- $1  what it is of
-- $2  when the walk began
-- $3  the next page
-- $4  whether it is at the end
UPDATE millrace.retention_walks
SET page = CASE WHEN $4 THEN 0 ELSE $3 END,
    done = CASE WHEN $4 THEN began ELSE done END,
    began = CASE WHEN $4 THEN NULL ELSE began END
WHERE of = $1 AND began = $2
