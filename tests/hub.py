"""A hub on loopback: repositories are folders, `models/ORG/NAME` and `datasets/ORG/NAME`, of one commit each.

It answers what transformers, datasets and huggingface_hub ask to download them; `gated` ones want `TOKEN`. Another one,
`uploads`, takes what is sent to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_token_of_the_tests"


class _Refused(Exception):
    """A status, and what the hub calls the reason in a header."""


def _entry(repository: Path, path: Path) -> dict[str, Any]:
    name = str(path.relative_to(repository))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
    data = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}


class _Handler(BaseHTTPRequestHandler):
    root: Path
    gated: set[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        asked = parse_qs(address.query or self.rfile.read(length).decode())
        try:
            self._answer(unquote(address.path), asked)
        except _Refused as refused:
            status, reason = refused.args
            self._send(b"{}", {"X-Error-Code": reason, "X-Error-Message": reason}, status)

    do_HEAD = do_POST = do_GET

    def _answer(self, path: str, asked: dict[str, list[str]]) -> None:
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = found.groups()
            repository = self._repository("datasets" if kind else "models", name, revision)
            if name in self.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _Refused(401, "GatedRepo")
            return self._file(repository / file)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?", path):
            kind, name, what, rest = found.groups()
            revision, _, below = (rest or "main").partition("/")
            repository = self._repository(kind, name, revision)
            if what == "tree":
                every = asked.get("recursive", ["false"])[0].lower() == "true"
                if not (repository / below).is_dir():
                    raise _Refused(404, "EntryNotFound")
                paths = sorted((repository / below).glob("**/*" if every else "*"))
                return self._json([_entry(repository, path) for path in paths])
            if what == "paths-info":
                paths = [repository / path for path in asked.get("paths", [])]
                return self._json([_entry(repository, path) for path in paths if path.exists()])
            files = [{"rfilename": str(f.relative_to(repository))} for f in repository.rglob("*") if f.is_file()]
            return self._json({"id": name, "sha": COMMIT, "siblings": files, "tags": [], "private": False})
        raise _Refused(404, "EntryNotFound")

    def _repository(self, kind: str, name: str, revision: str) -> Path:
        repository = self.root / kind / name
        if not repository.is_dir():
            raise _Refused(401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            raise _Refused(404, "RevisionNotFound")
        return repository

    def _file(self, file: Path) -> None:
        if not file.is_file():
            raise _Refused(404, "EntryNotFound")
        data = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(data[first : last + 1], headers, 206)
        return self._send(data, headers)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(root: Path, gated: set[str]) -> Iterator[str]:
    """The address of a hub that holds the repositories below `root`."""
    handler = type("Handler", (_Handler,), {"root": root, "gated": gated})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def uploads(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub that huggingface_hub uploads to until the context ends: to it all files are small.

    url: its address. made: what it was asked to create. sent: the bytes of each file, and the summary of the commit as
    "what it is for". A repository stays as visible as it was made; all have the same files.
    """
    made, sent = [], {}
    take = {
        "header": lambda value: sent.update({"what it is for": value["summary"]}),
        "file": lambda value: sent.update({value["path"]: base64.b64decode(value["content"])}),
        "deletedFile": lambda value: sent.pop(value["path"]),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files = [{"rfilename": name} for name in sent if name != "what it is for"]
            first = next((asked for asked in made if self.path.endswith(_address(asked))), {})
            private = first.get("visibility") == "private"
            self._answer({"id": "me/it", "private": private, "siblings": files, "tags": []})

        def do_POST(self) -> None:
            assert self.headers["Authorization"] == "Bearer hf_token"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                made.append(json.loads(body))
                answer = {"url": f"{url}/{_address(made[-1])}"}
            elif self.path == "/api/validate-yaml":
                answer = {"errors": [], "warnings": []}
            elif self.path.endswith("/preupload/main"):
                files = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            else:
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    take[line["key"]](value)
                answer = {"commitUrl": f"{url}/{_address(made[-1])}/commit/{'0' * 40}", "commitOid": "0" * 40}
            self._answer(answer)

        def _answer(self, answer: dict[str, Any]) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(url=url, made=made, sent=sent)
        server.shutdown()


def _address(asked: dict[str, Any]) -> str:
    kind = "datasets/" if asked.get("type") == "dataset" else ""
    return f"{kind}{asked['organization']}/{asked['name']}"
