"""`harness view`: a real server of real records, asked by real requests."""

from __future__ import annotations

import argparse
import http.client
import json
import re
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import quote

import pytest
from chromium import Page, in_a_browser
from records import make_record
from rendered import HOSTILE

from harness.__main__ import main
from harness.cli.view import viewer
from harness.record import write
from harness.report.pages.server import Viewer, ViewerRequest
from harness.sweep.store import Study


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for study, methods in (("one", ["lora", "full"]), ("group/two", ["dora"])):
        for method in methods:
            record = make_record(method, study=study)
            write(record, folder / study / f"{record.cell.name}.json")
    (tmp_path / "secret.json").write_text("{}")
    return folder


@contextmanager
def serving(results, study=None):
    with viewer(argparse.Namespace(results_dir=results, study=study, port=0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path, method="GET", host=None):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.port}"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.headers), body


def test_the_index_leads_to_the_page_of_each_study(results):
    with serving(results) as server:
        status, headers, index = ask(server, server.address())
        assert status == 200
        assert headers["Cache-Control"] == "no-store"
        links = re.findall(r'href="([^"]+)">([^<]+)</a>: ([^<]+)<', index)
        assert [(name, said) for _, name, said in links] == [("group/two", "1 done."), ("one", "2 done.")]
        for address, name, _ in links:
            status, headers, page = ask(server, address)
            assert status == 200
            assert headers["Content-Type"] == "text/html; charset=utf-8"
            assert f"<h1>{name}: fine-tuning methods compared</h1>" in page
            assert "connect-src 'self'" in page


def test_without_the_token_nothing_is_told(results):
    with serving(results) as server:
        page = server.address("study", "one")
        wrong = page.replace(server.token, server.token[:-1] + ("a" if server.token[-1] != "a" else "b"))
        for path in ("/", "//", "/study/one", wrong, "/é", f"/{server.token}x/"):
            status, _, body = ask(server, path.encode("ascii", "ignore").decode())
            assert status == 404
            assert "lora" not in body
        assert len(server.token) >= 32
    with serving(results) as other:
        assert other.token != server.token


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example:8765"])
def test_a_foreign_host_name_is_refused(results, host):
    with serving(results) as server:
        status, _, body = ask(server, server.address("study", "one"), host=host)
        assert status == 403
        assert "lora" not in body
        assert ask(server, server.address(), host=f"localhost:{server.port}")[0] == 200


def test_it_listens_on_this_machine_alone(results):
    with serving(results) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_no_file_can_be_named(results):
    with serving(results) as server:
        for name in (
            "../secret.json",
            "..%2Fsecret.json",
            "one/../../secret.json",
            "%2Fetc%2Fpasswd",
            ".",
            "..",
            "",
            "no",
        ):
            for kind in ("study", "news", "file", ".."):
                status, _, body = ask(server, f"/{server.token}/{kind}/{name}")
                assert status == 404
                assert "root:" not in body
    with serving(results, "one") as server:
        assert ask(server, server.address("study", "group/two"))[0] == 404, "another study was not asked for"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(results, method):
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    with serving(results) as server:
        status, headers, _ = ask(server, server.address("study", "one"), method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        status, headers, body = ask(server, server.address("study", "one"), "HEAD")
        assert (status, body) == (200, "")
        assert int(headers["Content-Length"]) > 100_000
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_a_page_is_made_again_only_when_records_change(results):
    with serving(results) as server:
        news = json.loads(ask(server, server.address("news", "one"))[2])
        first = ask(server, server.address("study", "one"))[2]
        made = server._made["one"]
        assert ask(server, server.address("study", "one"))[2] == first
        assert server._made["one"] is made
        assert json.loads(re.search(r'id="live-data">(.*?)</script>', first)[1])["version"] == news["version"]
        record = make_record("newcomer", study="one")
        write(record, results / "one" / f"{record.cell.name}.json")
        later = json.loads(ask(server, server.address("news", "one"))[2])
        assert later["version"] != news["version"]
        assert later["said"] == "3 done."
        assert "newcomer" not in first
        assert "newcomer" in ask(server, server.address("study", "one"))[2]


def test_a_study_without_records_waits_for_them(results):
    (results / "new" / ".harness").mkdir(parents=True)
    with serving(results, "new") as server:
        page = ask(server, server.address("study", "new"))[2]
        assert "no cell is over yet" in page
        news = json.loads(ask(server, server.address("news", "new"))[2])
        assert (news["said"], news["over"], news["running"]) == ("0 done.", 0, [])
        record = make_record("lora", study="new")
        write(record, results / "new" / f"{record.cell.name}.json")
        assert "new: fine-tuning methods compared" in ask(server, server.address("study", "new"))[2]


def test_hostile_names_are_texts(results):
    record = make_record(HOSTILE[0], study="one", model=HOSTILE[4])
    write(record, results / "one" / "hostile.json")
    with serving(results) as server:
        page = ask(server, server.address("study", "one"))[2]
        assert "<script>alert" not in page


# Clients that don't behave


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(ViewerRequest, "limit", 0.6)


def until_closed(connection):
    """Seconds until the other side ends the connection, and what it sent before."""
    connection.settimeout(20)
    begin, got = time.monotonic(), b""
    while part := connection.recv(2**16):
        got += part
    return time.monotonic() - begin, got


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0"])
def test_a_client_that_sends_no_whole_request_is_sent_away(results, hasty, capfd, sent):
    with serving(results) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(sent)
        seconds, got = until_closed(connection)
        assert (got, 0.4 < seconds < 5) == (b"", True)
        assert ask(server, server.address())[0] == 200
    assert capfd.readouterr().err == ""


def test_the_limit_is_of_a_whole_request(results, hasty, capfd):
    """A byte now and then does not renew it."""
    with serving(results) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        begin = time.monotonic()
        with pytest.raises(ConnectionError):
            drip(connection, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100)
        assert time.monotonic() - begin < 5
    assert capfd.readouterr().err == ""


def drip(connection, text):
    for byte in text:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def test_a_client_that_takes_no_answer_is_sent_away(results, hasty, monkeypatch, capfd):
    with serving(results) as server, socket.socket() as connection:
        monkeypatch.setattr(server, "index", lambda names: "x" * 2**27)  # more than any buffer between the two
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        before = set(threading.enumerate())  # of which some may end, as those of earlier tests
        connection.connect(("127.0.0.1", server.port))  # from here on a thread of the server waits for the request
        connection.sendall(f"GET {server.address()} HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode())
        wait_until(lambda: set(threading.enumerate()) - before)
        wait_until(lambda: not set(threading.enumerate()) - before)
        _, got = until_closed(connection)
        assert len(got) < 2**27
    assert capfd.readouterr().err == ""


def test_a_client_that_goes_away_leaves_no_traceback(results, monkeypatch, capfd):
    with serving(results) as server:
        asked = threading.Event()

        def index(names):
            assert asked.wait(20)
            return "x" * 2**25

        monkeypatch.setattr(server, "index", index)
        before = set(threading.enumerate())
        for number in range(3):
            connection = socket.create_connection(("127.0.0.1", server.port))
            connection.sendall(f"GET {server.address()} HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell
            wait_until(lambda number=number: len(set(threading.enumerate()) - before) > number)
            connection.close()
        asked.set()
        wait_until(lambda: not set(threading.enumerate()) - before)
    assert capfd.readouterr().err == ""


def wait_until(condition):
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true in 20 s")


# The command


def test_a_port_in_use_and_a_missing_folder_are_one_sentence_each(inside, results):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = inside("view", "--port", str(port))
        assert said.returncode == 2
        assert said.stderr.startswith(f"error: Port {port} can't be used (address already in use); take another with")
    said = inside("view", "--results-dir", "nowhere")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "There is no results folder nowhere" in said.stderr
    said = inside("view", "--port", "70000")
    assert said.stderr == "error: --port must lie between 0 and 65535, got 70000.\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("later", ""), ("group/tow", " Did you mean group/two? Then press Ctrl-C.")]
)
def test_a_study_that_has_not_begun_is_waited_for(results, monkeypatch, capsys, name, hint):
    with monkeypatch.context() as unserved:
        unserved.setattr(Viewer, "serve_forever", lambda self: None)
        assert main(["view", name, "--results-dir", str(results), "--port", "0"]) == 0
    first, address, _ = capsys.readouterr().out.splitlines()
    assert first == f"{name} has not begun; its page waits for it.{hint}"
    assert address.endswith(f"/study/{quote(name, safe='')}")


def test_the_page_of_a_study_that_has_not_begun_says_so(results):
    with serving(results, "later") as server:
        assert "later: no cell is over yet" in ask(server, server.address("study", "later"))[2]


def test_the_losses_of_running_cells_are_noted(results):
    cell = make_record("lora", study="new").cell
    store = Study(results, "new")
    with serving(results, "new") as server, store.lease(cell) as note:
        for step, loss in ((1, 2.5), (2, 2.0), (2, 2.0), (3, float("nan"))):
            note({"phase": "train", "step": step, "of": 10, "loss": loss})
            (running,) = json.loads(ask(server, server.address("news", "new"))[2])["running"]
        assert (running["name"], running["phase"], running["step"], running["of"]) == (cell.name, "train", 3, 10)
        assert running["losses"] == [[1, 2.5], [2, 2.0]]


@pytest.mark.long
@in_a_browser
def test_a_page_without_results_shows_the_cells_that_run(results, tmp_path):
    cell = make_record("lora", study="new").cell
    store = Study(results, "new")
    with serving(results, "new") as server, Page(tmp_path / "profile") as page, store.lease(cell) as note:
        note({"phase": "train", "step": 1, "of": 10, "loss": 2.5})
        page.go(f"http://127.0.0.1:{server.port}{server.address('study', 'new')}")
        wait_for(page, "document.querySelector('#running-cells table').textContent.includes('1 of 10')")
        note({"phase": "train", "step": 2, "of": 10, "loss": 2.0})
        wait_for(page, "document.querySelector('#running-cells svg').getBBox().width > 300")
        assert page.complaints() == []
        record = make_record("lora", study="new")
        write(record, results / "new" / f"{record.cell.name}.json")
        wait_for(page, "document.querySelector('h1')?.textContent === 'new: fine-tuning methods compared'")


@pytest.mark.long
@in_a_browser
def test_an_open_page_says_that_there_are_new_results(results, tmp_path):
    with serving(results, "one") as server, Page(tmp_path / "profile") as page:
        page.go(f"http://127.0.0.1:{server.port}{server.address('study', 'one')}#explore&find=lora")
        assert page.complaints() == []
        wait_for(page, "document.querySelector('#live span').textContent === '2 done.'")
        assert page.ask("document.querySelector('#live button').hidden")
        record = make_record("newcomer", study="one")
        write(record, results / "one" / f"{record.cell.name}.json")
        wait_for(page, "!document.querySelector('#live button').hidden")
        page.events.clear()
        page.ask("document.querySelector('#live button').click()")
        page.loaded()
        wait_for(page, "document.body.textContent.includes('newcomer')")
        assert page.ask("location.hash") == "#explore&find=lora"


def wait_for(page, condition):
    """Ask again and again; the answer is lost of a page that another one takes the place of meanwhile."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(AssertionError):
            if page.ask(f"(() => {{ try {{ return !!({condition}); }} catch {{ return false; }} }})()"):
                return
        time.sleep(0.1)
    raise AssertionError(condition)
