"""A server of chat completions that answers as a script says, on loopback: a peer to talk to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """asked: the bodies of all requests, in order; keys: what each was authorised with; url: the base of the API."""

    def __init__(self, url: str):
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]


@contextmanager
def server(script: Callable[[str, int], str | int | dict[str, Any]]) -> Iterator[Server]:
    """Serve `script`: from a prompt and the number of the request to an answer, an HTTP status, or parts of a reply."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                found.asked.append(body)
                found.keys.append(self.headers["Authorization"])
                number = len(found.asked) - 1
            said = script(body["messages"][-1]["content"], number)
            reply = said if isinstance(said, dict) else {"text": said}
            status = reply["text"] if isinstance(reply["text"], int) else 200
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            message = {"role": "assistant", "content": reply["text"]}
            choice = {"index": 0, "message": message, "finish_reason": reply.get("finish", "stop")}
            sent = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
            sent = sent | {"usage": reply.get("usage", usage)} if status == 200 else {"error": {"message": "no"}}
            text = json.dumps(sent).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Server(f"http://127.0.0.1:{here.server_port}/v1")
    threading.Thread(target=here.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        here.shutdown()
        here.server_close()
