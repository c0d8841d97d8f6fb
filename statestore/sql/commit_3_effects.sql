-- Completions and, only for those that come in, all that depends on them.
-- Returns the places of the tasks, from 1, whose effects are written.
-- $1       token of the transaction
-- $2–$20   the tasks: of each the place of the task whose turn it ends along with,
--          its own as a rule
-- $21–$24  messages, in order: the place of the turn, role, content and the
--          message's number within the turn, from 1
-- $25–$33  events, in order: the place of the task and the columns of the outbox
WITH task AS MATERIALIZED (
    -- A turn names the version it ran on and is left out when that is not the version,
    -- also one that changes nothing: it may have left its conversation alone, or
    -- emitted events, for what an old copy has told it. Cancels, dead letters and the
    -- like name none, unless they change the conversation. The conversations are locked,
    -- so this statement's snapshot has them as they are.
    SELECT u.*, c.length
    FROM unnest($2::text[], $3::integer[], $4::integer[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[],
                $10::text[], $11::integer[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::bigint[],
                $17::timestamptz[], $18::timestamptz[], $19::text[], $20::integer[])
         WITH ORDINALITY
         AS u (task_id, redrive, leader, conversation_id, expected, tenant, type, priority,
               status, attempts, result, error, calls, input, output,
               started_at, finished_at, state, added, place)
    LEFT JOIN millrace.conversations c ON c.id = u.conversation_id
    WHERE u.expected IS NULL OR c.version = u.expected
), inserted AS (
    -- Sorted, so that transactions cannot deadlock.
    INSERT INTO millrace.completions
        (task_id, redrive, conversation_id, tenant, type, priority, status, attempts, result, error,
         llm_calls, input_tokens, output_tokens, commit_token, started_at, finished_at)
    SELECT task_id, redrive, conversation_id, tenant, type, priority, status, attempts, result::json, error,
           calls, input, output, $1, started_at, finished_at
    FROM task
    ORDER BY task_id, redrive
    ON CONFLICT (task_id, redrive) DO NOTHING
    RETURNING task_id, redrive
), ended AS MATERIALIZED (
    -- IS TRUE keeps this a look-up in a hash. The planner expects one row, and would
    -- compare every task with every other.
    SELECT place, leader, task_id, redrive, conversation_id, length, state, added, finished_at
    FROM task
    WHERE ((task_id, redrive) IN (SELECT task_id, redrive FROM inserted)) IS TRUE
), mine AS MATERIALIZED (
    SELECT * FROM ended WHERE leader = place OR leader IN (SELECT place FROM ended)
), messages AS (
    -- A message's place counts from the length that PostgreSQL has, not from what the
    -- turn was told.
    INSERT INTO millrace.messages (conversation_id, seq, role, content, task_id, at)
    SELECT k.conversation_id, k.length + m.number, m.role, m.content, k.task_id, k.finished_at
    FROM unnest($21::integer[], $22::text[], $23::bytea[], $24::integer[]) AS m (place, role, content, number)
    JOIN mine k ON k.place = m.place
), conversations AS (
    UPDATE millrace.conversations c
    SET version = c.version + 1,
        state = COALESCE(k.state::json, c.state),
        length = c.length + k.added,
        updated_at = now()
    FROM mine k
    WHERE c.id = k.conversation_id AND k.added IS NOT NULL
), events AS (
    -- Ids are drawn in the order of the rows, under the conversation's lock: within a
    -- key they ascend in commit order.
    INSERT INTO millrace.outbox (shard, topic, key, event_id, event_type, content_type, headers, data, at)
    SELECT e.shard, e.topic, e.key, e.event_id, e.event_type, e.content_type, e.headers::json, e.data, k.finished_at
    FROM unnest($25::integer[], $26::smallint[], $27::text[], $28::bytea[], $29::text[], $30::text[], $31::text[],
                $32::text[], $33::bytea[])
         WITH ORDINALITY
         AS e (place, shard, topic, key, event_id, event_type, content_type, headers, data, number)
    JOIN mine k ON k.place = e.place
    ORDER BY e.number
), steps AS (
    -- A journal has served once its task is complete.
    DELETE FROM millrace.steps s
    USING mine k
    WHERE s.task_id = k.task_id AND s.redrive = k.redrive
)
SELECT array_agg(place::integer) FROM mine
