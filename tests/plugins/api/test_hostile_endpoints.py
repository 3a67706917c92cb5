"""Endpoints that mean no good: answers without end, nested without end, and waiting without end."""

from __future__ import annotations

import gzip
import json
import shutil
import ssl
import subprocess
import threading
import time
import tracemalloc
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command_line import called
from job_helpers import composed, run_request

from harness.errors import UserError
from harness.plugins.api.job import client, endpoint, judge
from harness.plugins.api.requests import ApiAccess
from harness.record import encode

MIB = 2**20
TASK = ("eval=wordmath_short", "eval.limit=2", "data=wordmath_short")
ZEROS = gzip.compress(bytes(256 * MIB))


def large(handler, status=200):
    """A body of 1 GB."""
    handler.start(status, {"Content-Length": str(1024 * MIB)})
    for _ in range(1024):
        handler.wfile.write(b" " * MIB)


def endless(handler):
    """A body in chunks that does not end."""
    handler.start(200, {"Transfer-Encoding": "chunked"})
    while True:
        handler.wfile.write(b"%x\r\n%b\r\n" % (MIB, b" " * MIB))


def bomb(handler):
    """256 MiB in 256 KiB."""
    handler.start(200, {"Content-Encoding": "gzip", "Content-Length": str(len(ZEROS))})
    handler.wfile.write(ZEROS)


def said(text: bytes, status: int = 200, **headers: str):
    """A peer that says `text`."""

    def answer(handler):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.start(status, named | {"Content-Length": str(len(text))})
        handler.wfile.write(text)

    return answer


DEEP = b'{"choices": ' + b"[" * 100_000
BUSY = said(b"busy", 429, Retry_After="1")


@contextmanager
def hostile(*answers, tls: ssl.SSLContext | None = None):
    """The address of an API that gives `answers` in turn, the last one for ever, and the times of its requests."""
    times: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            times.append(time.monotonic())
            try:
                answers[min(len(times), len(answers)) - 1](self)
            except OSError:  # the other side has seen enough
                self.close_connection = True

        def start(self, status, headers):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.daemon_threads = True
    if tls is not None:
        here.socket = tls.wrap_socket(here.socket, server_side=True)
    threading.Thread(target=here.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{here.server_port}/v1", times
    finally:
        here.shutdown()
        here.server_close()


def ask(url: str, tell=lambda sentence: None) -> client.Reply:
    return client.Client(url, "m", 30.0, tell).ask([{"role": "user", "content": "?"}])


def run_cell(folder, url: str, events: list, **settings):
    """The record of a cell of the model at `url`."""
    cell = composed("method=api", f"model.base_url={url}", "model.name=m", *TASK)
    usual = {"concurrency": 2, "per_minute": None, "timeout": 30.0, "retries": 1, "backoff": 0.01, "key_env": None}
    usual |= {"price_read": None, "price_written": None, "answers": str(folder / "answers" / "x.jsonl")}
    return run_request(
        cell, "test", folder / "x.json", None, events.append, extra=encode(ApiAccess(**usual | settings))
    )


# Size


@pytest.mark.parametrize("answer", [large, lambda handler: large(handler, 500), endless, bomb])
def test_an_answer_is_read_as_far_as_answers_go(answer):
    with hostile(answer) as (url, times):
        tracemalloc.start()
        try:
            with pytest.raises(
                UserError, match=r"^m at .* sent no chat completion: .* more than 16 MiB; check"
            ) as told:
                ask(url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert "\n" not in str(told.value)
    assert len(times) == 1, "it would be as long another time"
    assert peak < 64 * MIB


def test_a_cell_refuses_an_answer_that_is_too_long(tmp_path):
    with (
        hostile(large) as (url, times),
        pytest.raises(
            UserError, match=r"sent no completion: its answer has more than 16 MiB; check model\.base_url\.$"
        ),
    ):
        run_cell(tmp_path, url, [])
    assert len(times) <= 2
    assert not list(tmp_path.glob("*.json"))


def test_an_answer_just_below_the_limit_is_read():
    text = b'{"choices": [{"message": {"content": "yes"}}]}'
    with hostile(said(text + b" " * (endpoint.LARGEST - len(text)))) as (url, _):
        assert ask(url).text == "yes"


def test_a_long_refusal_is_quoted_at_once():
    """Looking for secrets in all of it would take for ever."""
    with hostile(said(b"(" * 2 * MIB, 400)) as (url, _):
        before = time.thread_time()
        with pytest.raises(UserError, match=r"refused \(HTTP 400: \({200}\)\.$"):
            ask(url)
        assert time.thread_time() - before < 5


# Errors with HTTP 200, as gateways send them once a model has begun

LATE = {"code": 502, "message": "Provider returned error"}
RIGHT = {"index": 0, "message": {"content": "#### 7"}, "finish_reason": "stop"}
ERRORS = {
    "of the response": {"error": LATE},
    "of the choice": {"choices": [RIGHT | {"message": {"content": ""}, "error": LATE, "finish_reason": "error"}]},
    "without a reason": {"choices": [RIGHT | {"message": {"content": "Provider ret"}, "finish_reason": "error"}]},
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_in_place_of_an_answer_is_no_answer(tmp_path, monkeypatch, error):
    monkeypatch.setattr(client, "BACKOFF", 0.01)
    late, right = said(json.dumps(error).encode()), said(json.dumps({"choices": [RIGHT]}).encode())
    with hostile(late, right) as (url, times):
        assert (ask(url).text, len(times)) == ("#### 7", 2)
    with hostile(late) as (url, _):
        says = r"^m at .* sent an error in place of an answer \(6 tries\): .*Provider ret"
        with pytest.raises(UserError, match=says):
            ask(url)
        record = run_cell(tmp_path, url, [], concurrency=1)
    assert record.status == "failed"
    assert "did not answer (2 tries): the response is an error, '{" in record.failure.reason
    assert "Provider ret" in record.failure.reason
    assert not list(tmp_path.glob("answers/*")), "an empty answer would have been scored"


def test_a_choice_without_a_message_is_no_empty_answer(tmp_path):
    with hostile(said(b'{"choices": [{"index": 0, "finish_reason": "stop"}]}')) as (url, _):
        record = run_cell(tmp_path, url, [], concurrency=1)
    assert record.status == "failed"
    assert "the response is not a completion" in record.failure.reason


# On the way

YES = said(b'{"choices": [{"message": {"content": "yes"}}]}')


def test_passwords_of_other_tools_are_not_sent(tmp_path, monkeypatch):
    """aiohttp would send them, and fail where a key is sent."""
    (tmp_path / "netrc").write_text("default login me password of-another-tool\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    headers = []

    def answer(handler):
        headers.append(handler.headers["Authorization"])
        YES(handler)

    with hostile(answer) as (url, _):
        assert ask(url).text == "yes"
        monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-endpoint")
        assert ask(url).text == "yes"
    assert headers == [None, "Bearer key-of-the-endpoint"]


def test_a_proxy_is_used_and_named_where_it_fails(monkeypatch):
    monkeypatch.setattr(client, "RETRIES", 0)
    with hostile(YES) as (url, times):
        address = url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", address)  # as curl takes it
        assert ask("http://somewhere.invalid/v1").text == "yes"
        assert len(times) == 1
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with pytest.raises(
            UserError, match=r"^m at .* through the environment's proxy \(.*check HTTPS_PROXY and NO_PROXY"
        ):
            ask(url)
        monkeypatch.setenv("NO_PROXY", address)
        assert ask(url).text == "yes"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_a_certificate_that_is_not_trusted_says_so_at_once(tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out own.pem -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    begun = time.monotonic()
    with hostile(YES, tls=context) as (url, times):
        with pytest.raises(UserError, match=r"not trusted \(self-signed certificate\); set SSL_CERT_FILE to a file"):
            ask(url)
        with pytest.raises(UserError, match=r"not trusted \(self-signed certificate\); set SSL_CERT_FILE to a file"):
            run_cell(tmp_path, url, [])
    assert times == []
    assert time.monotonic() - begun < 60


def test_another_address_is_not_followed_but_hinted_at():
    with (
        hostile(said(b"", 308, Location="https://elsewhere/v1")) as (url, _),
        pytest.raises(UserError, match=r"refused \(HTTP 308: \); check --base-url, which leads to another address\.$"),
    ):
        ask(url)


def test_a_date_without_sense_is_no_wait(monkeypatch):
    monkeypatch.setattr(client, "BACKOFF", 0.01)
    busy = said(b"busy", 429, Retry_After="Wed, 21 Oct 2015 07:28:00 +99999999999999")
    with hostile(busy, YES) as (url, _):
        assert ask(url).text == "yes"


# Nesting


def test_deep_nesting_is_no_answer(tmp_path):
    with hostile(said(DEEP)) as (url, times):
        with pytest.raises(UserError, match=r"^m at .* sent no chat completion; check --base-url\.$"):
            ask(url)
        del times[:]
        record = run_cell(tmp_path, url, [], concurrency=1)
    assert record.status == "failed"
    assert "did not answer (2 tries): the response is not JSON (it is nested too deeply)" in record.failure.reason
    assert len(times) == 2


def test_a_judge_whose_verdict_is_nested_says_nothing():
    assert judge.better(client.Reply('{"better": ' + "[" * 100_000 + "}", True, None, None)) is None


# Waiting


@pytest.mark.long
def test_a_wait_is_told_once_and_answers_follow(tmp_path):
    text = b'{"choices": [{"message": {"content": "#### 7"}, "finish_reason": "stop"}]}'
    told = []
    with hostile(BUSY, BUSY, said(text)) as (url, times):
        assert ask(url, told.append).text == "#### 7"
        assert told == [f"{url}/chat/completions asks to wait 1 s (HTTP 429, Retry-After); its requests wait."]
        assert times[-1] - times[0] > 1.9
        del times[:]
        events = []
        assert run_cell(tmp_path, url, events, retries=3).status == "ok"
    assert [event["warning"] for event in events if "warning" in event] == told


@pytest.mark.long
def test_a_wait_that_grows_is_told_again(monkeypatch):
    monkeypatch.setattr(endpoint, "SILENCE", 0.5)
    told = []
    with hostile(BUSY, BUSY, said(b"{}")) as (url, _), pytest.raises(UserError):
        ask(url, told.append)
    assert len(told) == 2


@pytest.mark.long
def test_waiting_has_a_limit_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "ALL_WAITING", 1.5)
    with hostile(BUSY) as (url, times):
        with pytest.raises(UserError, match=r"^m at .* asked to wait for more than 0\.025 minutes in all \(HTTP 429"):
            ask(url)
        assert len(times) == 2
        del times[:]
        record = run_cell(tmp_path, url, [], retries=9, concurrency=1)
        assert len(times) == 2
    assert record.status == "failed"
    assert "(2 tries): it asked to wait for more than 0.025 minutes in all, HTTP 429" in record.failure.reason


@pytest.mark.long
@pytest.mark.slow
def test_a_user_sees_that_an_endpoint_is_waited_for(tmp_path):
    text = b'{"choices": [{"message": {"content": "seven"}}]}'
    with hostile(BUSY, said(text)) as (url, _):
        run = called(tmp_path, "ask", "3 + 4?", "--api", "m", "--base-url", url)
    assert (run.returncode, "seven" in run.stdout) == (0, True), run.stderr
    assert f"warning: {url}/chat/completions asks to wait 1 s" in run.stderr
