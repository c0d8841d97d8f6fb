"""Sends a task straight to Kafka and prints what came of it.

Whoever writes to a priority topic has classified the task; rules and admission are the HTTP API's.
"""

import os
import urllib.request

# snippet:submit
import json

from confluent_kafka import Producer

producer = Producer({
    "bootstrap.servers": os.environ.get("MILLRACE_KAFKA_BROKERS", "localhost:9092"),
    # All clients have to agree on the partition of a conversation, or its order is lost. librdkafka's default is another.
    "partitioner": "murmur2_random",
    "enable.idempotence": True,  # acks=all, and no repeat by the client's own retries
})


def submit(conversation, task_id, payload):
    """Sends a task. Under one id, a repeat is the same task."""
    errors = []
    producer.produce(
        "millrace.tasks.normal",
        key=conversation,
        value=json.dumps(payload),
        headers={
            "ce_specversion": "1.0",
            "ce_id": task_id,
            "ce_source": "/support/desk",
            "ce_type": "chat.message",
            "content-type": "application/json",
        },
        on_delivery=lambda error, _: errors.append(error),
    )
    producer.flush()
    if errors != [None]:
        raise RuntimeError(f"task {task_id} was not sent: {errors}")
# snippet:end


if __name__ == "__main__":
    submit("ticket-1004", "ticket-1004.message-1", {"text": "Where is my order?"})
    api = os.environ.get("MILLRACE_URL", "http://127.0.0.1:8080")
    with urllib.request.urlopen(f"{api}/v1/tasks/ticket-1004.message-1?wait=60s", timeout=90) as response:
        print(response.read().decode())
