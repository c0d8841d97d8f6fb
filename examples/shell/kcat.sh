#!/bin/sh
# Sends a task straight to Kafka with kcat and prints what came of it.
set -eu
# snippet:submit
# The partitioner is that of Kafka's own clients. kcat's default sends the conversation elsewhere, where its order is lost.
printf '{"text": "Where is my order?"}' |
    kcat -P -b "${MILLRACE_KAFKA_BROKERS:-localhost:9092}" -t millrace.tasks.normal -k ticket-1002 \
        -X acks=all -X partitioner=murmur2_random \
        -H ce_specversion=1.0 -H ce_id=ticket-1002.message-1 -H ce_source=/support/desk -H ce_type=chat.message \
        -H content-type=application/json

curl -sS --fail-with-body "${MILLRACE_URL:-http://127.0.0.1:8080}/v1/tasks/ticket-1002.message-1?wait=60s"
# snippet:end
