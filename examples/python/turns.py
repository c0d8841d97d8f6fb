"""Receives the turns that a Millrace worker posts, with the standard library alone.

Copy it beside your agent, or do the same with your web framework: a POST with the turn as JSON, answered by the turn's
effects as JSON.
"""

import json
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Refused(Exception):
    """Ends a turn without effects.

    409, 429 and 5xx are tried again, after `retry_after` seconds if given. Any other status makes the task a dead letter.
    """

    def __init__(self, status, message, retry_after=None):
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class _Server(ThreadingHTTPServer):
    # A worker has 100 slots by default and may open a connection for each at once; the library's 5 would make it wait.
    request_queue_size = 1024


def serve(answer, host="127.0.0.1", port=9000):
    """Calls `answer(turn, llm_headers)` for every turn, each in a thread of its own, until Ctrl-C.

    `turn` is the turn as a dict. `llm_headers` go along with every call to the LLM proxy: they say which turn it is for.
    What `answer` returns, a dict, are the turn's effects.
    """

    class Turns(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open
        disable_nagle_algorithm = True

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Millrace-Turn")
            try:
                effects = answer(json.loads(body), {"Millrace-Turn": token} if token else {})
                self.reply(200, effects)
            except Refused as refused:
                self.reply(refused.status, {"error": str(refused)}, refused.retry_after)
            except Exception as error:  # a mistake in the agent; the turn is tried again
                traceback.print_exc()
                self.reply(500, {"error": repr(error)})

        def reply(self, status, content, retry_after=None):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if retry_after is not None:
                self.send_header("Retry-After", str(retry_after))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code="-", size="-"):
            pass  # the worker logs every turn

    with _Server((host, port), Turns) as server:
        print(f"agent at http://{host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
