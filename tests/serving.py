"""Real servers on loopback for models behind an API, and what may go wrong between them and who asks.

`transformers serve` answers chats and completions of the tiny model. It has no log-probabilities: `LogProbabilities`
computes them with the same model, and gives them as vLLM and OpenAI do. `Wire` stands in front of either.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from aiohttp import ClientSession, web
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.job.models import embedded

NAME = "tiny"
PATIENCE = 400.0  # seconds that a server may take to come up on a busy machine
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def chatty(folder: Path, name: str = "tiny") -> Path:
    """The embedded model `name` in `folder`, with a chat template."""
    source = embedded.folder(name)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)
    return folder


@contextmanager
def serve(model: str) -> Iterator[str]:
    """The address of `transformers serve` on the model of that path, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            come_up(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def come_up(url: str) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        assert time.monotonic() < until, "transformers serve does not come up"
        time.sleep(0.05)


class Site:
    """A small HTTP server in a thread; `base_url` is its address once it is entered."""

    def __enter__(self):
        self._loop, ready = asyncio.new_event_loop(), threading.Event()

        async def start() -> None:
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", self.answer)
            self._runner = web.AppRunner(application)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
            ready.set()

        def run() -> None:
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


class Wire(Site):
    """Passes requests on, but for what `faults` says of the next ones, or `always` of all.

    asked: the bodies of all requests, and given: of those whose answers were delivered whole. key: what must come with
    them. seconds: that "slow" answers take.
    """

    def __init__(self, to: str, key: str | None = None):
        self.to, self.key = to, key
        self.faults: list[str | None] = []
        self.always: str | None = None
        self.seconds = 5.0
        self.asked: list[bytes] = []
        self.given: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.under_way, self.most = 0, 0
        self.times: list[float] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append(body)
        self.times.append(time.monotonic())
        self.headers.append(dict(request.headers))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._answer(request, body)
        finally:
            self.under_way -= 1

    async def _answer(self, request: web.Request, body: bytes) -> web.StreamResponse:
        fault = self.faults.pop(0) if self.faults else self.always
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": f"not {request.headers.get('Authorization')}"}}, status=401)
        if fault in ("429", "500", "503"):
            headers = {"Retry-After": "1"} if fault == "429" else {}
            return web.Response(status=int(fault), text="busy", headers=headers)
        if fault == "cut":
            request.transport.abort()
            return web.Response()
        if fault == "malformed":
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        if fault == "hollow":
            return web.json_response({"object": "chat.completion"})
        if fault == "page":
            return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
        if fault == "slow":
            await asyncio.sleep(self.seconds)
        async with ClientSession() as session:
            path = request.path.removeprefix("/v1")
            async with session.request(request.method, self.to + path, data=body, headers=_json()) as found:
                text, status = await found.read(), found.status
        if fault == "torn":
            response = web.StreamResponse(headers={"Content-Length": str(len(text))})
            await response.prepare(request)
            await response.write(text[: len(text) // 2])
            request.transport.abort()
            return response
        gone = request.transport is None or request.transport.is_closing()
        if status == 200 and not gone:
            self.given.append(body)
        return web.Response(body=text, status=status, content_type="application/json")


def _json() -> dict[str, str]:
    return {"Content-Type": "application/json"}


class LogProbabilities(Site):
    """Completions of the tiny model as vLLM has them: tokens or text in, their log-probabilities out with echo."""

    def __init__(self):
        source = embedded.folder("tiny")
        self._model = AutoModelForCausalLM.from_pretrained(source).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(source)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        ids = asked["prompt"] if isinstance(asked["prompt"], list) else self._tokenizer(asked["prompt"]).input_ids
        with torch.inference_mode():
            written = self._model.generate(
                torch.tensor([ids]), max_new_tokens=asked["max_tokens"], do_sample=False, pad_token_id=0
            )[0]
            choice = {"index": 0, "text": self._tokenizer.decode(written[len(ids) :], skip_special_tokens=True)}
            if asked.get("echo"):
                likely = self._model(written[None]).logits[0].float().log_softmax(-1)
                own = likely[:-1].gather(1, written[1:, None])[:, 0].tolist()
                best = likely[:-1].max(-1)
                top = [{str(i): v} for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
                choice["logprobs"] = {"token_logprobs": [None, *own], "top_logprobs": [None, *top]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written) - len(ids)}
        return web.json_response({"choices": [choice], "usage": usage})
