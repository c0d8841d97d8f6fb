"""Sends a task over HTTP and prints what came of it. Needs the standard library alone."""

# snippet:submit
import json
import os
import time
import urllib.error
import urllib.request

API = os.environ.get("MILLRACE_URL", "http://127.0.0.1:8080")


def call(method, path, body=None, headers=None):
    """Calls the API until it has answered. What passes (429, 5xx, a lost connection) is tried again."""
    for attempt in range(8):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            API + path, data, {"Content-Type": "application/json", **(headers or {})}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=90) as response:
                return json.load(response)
        except urllib.error.HTTPError as e:
            if e.code != 429 and e.code < 500:
                raise RuntimeError(e.read().decode()) from e  # problem+json: says what is wrong
            failure, delay = e, float(e.headers.get("Retry-After", 2**attempt))
        except OSError as e:
            failure, delay = e, 2**attempt
        time.sleep(delay)
    raise failure


def submit(task, key):
    """Sends a task and returns its result. Under one key, a repeat is the same task."""
    task_id = call("POST", "/v1/tasks", task, {"Idempotency-Key": key})["task_id"]
    while True:
        result = call("GET", f"/v1/tasks/{task_id}?wait=30s")
        if result["status"] in ("completed", "failed", "cancelled"):
            return result


if __name__ == "__main__":
    task = {"conversation": "ticket-1003", "type": "chat.message", "payload": {"text": "Where is my order?"}}
    print(json.dumps(submit(task, key="ticket-1003/message-1")))
# snippet:end
