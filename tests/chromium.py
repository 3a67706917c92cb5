"""A real browser for tests: headless Chromium, driven through a pipe by its own protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = pytest.mark.skipif(PATH is None, reason="no Chromium is installed (apt install chromium)")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32}
KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
TEXT = {"Enter": "\r", "Space": " "}


def in_a_browser(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(MISSING(test))


class Page:
    """One page in a browser of its own.

    events: what the browser reported, as (method, parameters). Close it, or use it in a with statement.
    """

    def __init__(self, profile: Path):
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()

        def connect() -> None:  # in the child: Chromium reads commands from 3 and writes answers to 4
            os.dup2(down_read, 3)
            os.dup2(up_write, 4)

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [PATH, *options], preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(down_read)
        os.close(up_write)
        self._down, self._up, self._rest, self._count = down_write, up_read, b"", 0
        self._session: str | None = None
        self.events: list[tuple[str, dict]] = []
        self._patience = 180  # seconds; the first browser of a fresh machine reads its files from a cold disk
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        self._patience = 20
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._down)
        os.close(self._up)

    def call(self, method: str, **parameters: Any) -> dict:
        """A command's answer; AssertionError where the browser refuses it, or does not answer in time."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._down, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self.events.append((answer["method"], answer["params"]))
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, fragment: str = "") -> None:
        """Show the file, and wait until it is loaded."""
        self._load("about:blank")  # to the same address with a fragment nothing would be loaded
        self._load(path.as_uri() + (f"#{fragment}" if fragment else ""))

    def go(self, address: str) -> None:
        """Show what a server answers, and wait until it is loaded."""
        self._load(address)

    def _load(self, address: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.loaded()

    def loaded(self) -> None:
        """Wait until the page is loaded that was begun since the events were cleared."""
        deadline = time.monotonic() + 20
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            assert time.monotonic() < deadline, "the page did not load"
            message = self._receive()
            self.events.append((message["method"], message["params"]))

    def ask(self, script: str) -> Any:
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Return once an expression is true on the page; fails after 20 seconds."""
        look = f"() => ({condition}) ? done() : Date.now() > end ? fail('still false') : setTimeout(look, 20)"
        self.ask(f"new Promise((done, fail) => {{ const end = Date.now() + 20_000; const look = {look}; look(); }})")

    def press(self, key: str) -> None:
        code = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        down = {"type": "keyDown", "text": TEXT[key]} if key in TEXT else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def width(self, pixels: int, height: int = 800) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=height, deviceScaleFactor=1, mobile=pixels < 600
        )

    def media(self, scheme: str) -> None:
        """light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path, whole: bool = False) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def accessible(self) -> list[dict]:
        """The nodes that a screen reader is told of, each with role and name."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def complaints(self) -> list[str]:
        """What the console says, and what was thrown."""
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(parameters) for method, parameters in self.events if method in told]

    def fetched(self) -> list[str]:
        """The addresses that were asked for since the page was opened, without those that its own policy forbade, and
        without pictures that are in the page itself."""
        failed = [told for method, told in self.events if method == "Network.loadingFailed"]
        blocked = {told["requestId"] for told in failed if told.get("blockedReason") == "csp"}
        asked = [told for method, told in self.events if method == "Network.requestWillBeSent"]
        addresses = [told["request"]["url"] for told in asked if told["requestId"] not in blocked]
        return [address for address in addresses if not address.startswith("data:")]

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._up], [], [], self._patience)
            assert ready, "Chromium did not answer"
            read = os.read(self._up, 1 << 20)
            assert read, "Chromium has ended"
            self._rest += read
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


# Pages of reports


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def shown(browser, tmp_path):
    """shown(text, fragment) is the browser with that page open on a desktop's screen."""

    def show(text, fragment=""):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        browser.call("Emulation.setEmulatedMedia", media="", features=[])
        browser.width(1280)
        browser.open(path, fragment)
        assert browser.fetched() == [path.as_uri()]
        return browser

    return show


COLUMN = """(table, name) => {
  const headers = [...document.getElementById(table).tHead.rows[0].cells];
  const at = headers.findIndex((th) => th.textContent === name);
  return [...document.getElementById(table).tBodies[0].rows].filter((row) => row.checkVisibility())
    .map((row) => row.cells[at].textContent);
}"""


def column(page, table, name):
    """The texts of a column as it is shown, from the top."""
    return page.ask(f"({COLUMN})('{table}', '{name}')")
