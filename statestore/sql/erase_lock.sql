-- Whoever commits on the conversation has this lock. What follows is another
-- statement, so that its clock is read when all of them are done.
-- $1  conversation id
SELECT FROM millrace.conversations WHERE id = $1 FOR UPDATE
