#!/bin/sh
# Sends a task with curl and prints what came of it.
set -eu
# snippet:submit
api=${MILLRACE_URL:-http://127.0.0.1:8080}

# Under one Idempotency-Key a repeat is the same task, so curl may try again.
accepted=$(curl -sS --fail-with-body --retry 5 --retry-connrefused "$api/v1/tasks" \
    -H 'Content-Type: application/json' -H 'Idempotency-Key: ticket-1001/message-1' \
    -d '{"conversation": "ticket-1001", "type": "chat.message", "payload": {"text": "Where is my order?"}}') ||
    { echo "$accepted" >&2; exit 1; }

id=$(echo "$accepted" | sed 's/.*"task_id":"\([^"]*\)".*/\1/')
curl -sS --fail-with-body "$api/v1/tasks/$id?wait=60s"
# snippet:end
