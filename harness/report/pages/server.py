"""Serves the reports of a results folder to a browser on this machine, and tells an open page of new results.

    Viewer(results, studies, page, news).serve_forever()

Only pages that `page` makes are served, so no address can name a file. A random token in the address keeps other users
of this machine out; the Host header is checked, or a foreign site could reach the server by a name that it lets point
here (DNS rebinding); and nothing can be written: only GET and HEAD are answered. A client has `ViewerRequest.limit`
seconds to send its request, and as many to take the answer: one that is idle or slow keeps no thread.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report.tables.formats import one_line

HERE = Path(__file__).parent
HOST = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class CellNews:
    """A cell that runs: what it does now, at which step of how many, its loss there, and the time it takes yet."""

    name: str
    method: str
    phase: str
    step: int | None
    of: int | None
    loss: float | None
    to_go: str


@dataclass(frozen=True)
class StudyNews:
    """How far a study is, as a text; cells that are over, and all that are known; those that run."""

    said: str
    over: int = 0
    cells: int = 0
    running: Sequence[CellNews] = ()


@dataclass
class LossHistory:
    """The losses of the running cells of a study, by name: a cell reports its last one alone."""

    MOST: ClassVar[int] = 400  # points of a cell: beyond, every second one is dropped
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def follow(self, running: Sequence[CellNews]) -> None:
        """Note what has been reported since; cells that no longer run are forgotten."""
        self.points = {cell.name: self.points.get(cell.name, []) for cell in running}
        for cell in running:
            own = self.points[cell.name]
            if cell.step is not None and cell.loss is not None and (not own or own[-1][0] < cell.step):
                own.append((cell.step, cell.loss))
            if len(own) > self.MOST:
                del own[1::2]


class Viewer(ThreadingHTTPServer):
    """A server on 127.0.0.1; OSError if the port is taken.

    results: the folder of the studies, which is looked at for changes. studies: their names. page: makes the page of a
    study; its second argument is what `render` takes as `live`. news: how far a study is. port: 0 is any that is free.
    """

    daemon_threads = True

    def __init__(
        self,
        results: Path,
        studies: Callable[[], list[str]],
        page: Callable[[str, dict[str, str]], str],
        news: Callable[[str], StudyNews],
        port: int = 0,
    ):
        super().__init__((HOST, port), ViewerRequest)
        self.results, self.studies, self._news, self._page = results, studies, news, page
        self.token = secrets.token_urlsafe(24)
        self._made: dict[str, tuple[str, str]] = {}  # by study: version and text
        self._making = threading.Lock()  # a page takes seconds: two at once would take longer
        self._losses: dict[str, LossHistory] = {}  # by study
        self._following = threading.Lock()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def address(self, *parts: str) -> str:
        """The path of the index, or of a page."""
        return "/".join(["", self.token, *(quote(part, safe="") for part in parts)]) + ("" if parts else "/")

    def version(self, study: str) -> str:
        """Differs whenever a record or its items are new or have changed."""
        paths = [path for kind in ("*.json", "*.items.parquet") for path in (self.results / study).glob(kind)]
        states = []
        for path in sorted(paths):
            try:
                stat = path.stat()
            except OSError:
                continue  # removed at this moment
            states.append((path.name, stat.st_mtime_ns, stat.st_size))
        return format(abs(hash(tuple(states))), "x")

    def page(self, study: str) -> str:
        """The page of a study, made anew only if its records changed."""
        with self._making:
            version = self.version(study)
            if self._made.get(study, ("", ""))[0] != version:
                live = {"news": self.address("news", study), "version": version}
                self._made[study] = version, self._page(study, live)
            return self._made[study][1]

    def news(self, study: str) -> dict[str, Any]:
        """What an open page asks for: as of `StudyNews`, with the losses of each running cell by step."""
        version, news = self.version(study), self._news(study)
        with self._following:
            history = self._losses.setdefault(study, LossHistory())
            history.follow(news.running)
            running = [asdict(cell) | {"losses": list(history.points[cell.name])} for cell in news.running]
        return {"version": version, "said": news.said, "over": news.over, "cells": news.cells, "running": running}

    def index(self, names: Sequence[str]) -> str:
        """A list of studies, which looks for news by itself."""
        environment = Environment(
            loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        return environment.get_template("index.html").render(
            studies=[(one_line(name), self.address("study", name), one_line(self._news(name).said)) for name in names],
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        )


class _Timed(io.RawIOBase):
    """What a client sends within `seconds` altogether; then TimeoutError. A socket's own limit is of each byte."""

    def __init__(self, connection: socket.socket, seconds: float):
        self._connection, self._end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class ViewerRequest(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Viewer
    server_version = "harness"
    sys_version = ""
    limit = 30.0
    """Seconds to send a request, and to take an answer."""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Timed(self.connection, self.limit))

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client went away: nobody waits for an answer
            super().handle()

    def do_GET(self) -> None:
        hosts = {f"{name}:{self.server.port}" for name in (HOST, "localhost")}
        if self.headers.get("Host") not in hosts:
            return self._answer(HTTPStatus.FORBIDDEN, "Ask for this page by the address that `harness view` printed.")
        _, token, *parts = [*self.path.partition("?")[0].split("/"), "", ""]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            return self._answer(HTTPStatus.NOT_FOUND, "There is no such page. `harness view` printed its address.")
        kind, study, *more = map(unquote, [*parts, ""])
        if not any((kind, study, *more)):
            return self._answer(HTTPStatus.OK, self.server.index(self.server.studies()), "text/html")
        if any(more) or study not in self.server.studies() or kind not in ("study", "news"):
            return self._answer(HTTPStatus.NOT_FOUND, "There is no such page.")
        if kind == "study":
            return self._answer(HTTPStatus.OK, self.server.page(study), "text/html")
        return self._answer(HTTPStatus.OK, json.dumps(self.server.news(study)), "application/json")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "Pages can only be read.")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.connection.settimeout(self.limit)
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a page that follows a sweep asks every few seconds."""
