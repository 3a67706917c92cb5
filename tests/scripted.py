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


REFUSED = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
    "instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
    "supported.",
    "stop": "Unsupported parameter: 'stop' is not supported with this model.",
}
"""What OpenAI's models that think before they answer say of parameters that they do not take."""


def refusal(asked: dict[str, Any]) -> dict[str, Any] | None:
    """What such a model replies to a request, or None where it takes all of it."""
    named = next((name for name in REFUSED if name in asked and (name, asked[name]) != ("temperature", 1.0)), None)
    return named and {"text": 400, "error": REFUSED[named]}


@contextmanager
def server(script: Callable[[str, int], str | int | dict[str, Any]]) -> Iterator[Server]:
    """Serve `script`: from a prompt and the number of the request to an answer, an HTTP status, or parts of a reply.

    Parts are its text (or status), finish, usage, and error, the message of a status.
    """
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
            sent |= {"usage": reply.get("usage", usage)}
            if status != 200:
                sent = {"error": {"message": reply.get("error", "no")}}
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


SCENES = ["garden", "harbour", "library", "orchard", "kitchen", "museum", "station", "forest", "castle", "market"]


def problem(number: int, result: int | None = None) -> str:
    """A sound answer to a request, unlike that to any other; `result` puts another for the right one."""
    scene, right = f"{SCENES[number % 10]} {number}", number + 30
    question = f"At the {scene} there are {number} lamps; {scene} workers bring 30 others to {scene}. How many in all?"
    said = right if result is None else result
    return json.dumps({"question": question, "answer": f"In all {number} + 30 = {said} lamps.\n#### {said}"})
