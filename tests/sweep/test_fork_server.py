"""Jobs forked from a process that holds the libraries: fresh each time, cheap after the first, none left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
from job_helpers import composed, tiny

from harness import env
from harness.config import ROOT
from harness.protocol import CheckCells, RunCell, decode_event, encode
from harness.sweep.fork_server import WAITING, Job, Server, environment

NOTHING = encode(CheckCells([]))

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.stop()


def ask(server: Server, stderr, request: str = NOTHING) -> tuple[int, list[dict]]:
    """A job's exit status and what it reported."""
    job = server.start(stderr)
    with job.request:
        job.request.write(request)
    events = [json.loads(line) for line in job.lines()]
    return job.wait(), events


def test_the_second_job_has_no_imports_to_wait_for(server, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        assert ask(server, log) == (0, [])
        holder = server._holder.process.pid
        start = time.monotonic()
        assert ask(server, log) == (0, [])
        assert time.monotonic() - start < 1
        assert server._holder.process.pid == holder


@pytest.mark.parametrize("libraries", ["harness.job.data.sources", "harness.job.has_no_such_module"])
def test_a_prepared_server_serves_the_first_request(tmp_path, libraries):
    prepared = Server()
    prepared.prepare(libraries)
    holder = prepared._holder.process.pid
    prepared.prepare("another")  # it has begun
    with open(tmp_path / "log", "wb") as log:
        assert ask(prepared, log) == (0, [])
    assert prepared._holder.process.pid == holder
    prepared.stop()


def test_a_server_imports_what_it_is_prepared_for_before_it_is_asked():
    prepared = Server()
    prepared.prepare("harness.job.data.sources")
    maps = Path(f"/proc/{prepared._holder.process.pid}/maps")
    until = time.monotonic() + 60
    while "libtorch_python" not in maps.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    prepared._holder.process.kill()
    prepared.stop()


def test_a_refusal_and_its_status_come_back(server, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        cells = [{"id": "x"}]  # no cell: the job breaks, its words are in its log
        code, events = ask(server, log, json.dumps({"CheckCells": {"cells": cells}}))
    assert (code, events) == (1, [])
    assert "is missing" in (tmp_path / "log").read_text()


def test_a_job_works_where_it_is_asked_for(server, tmp_path, monkeypatch):
    """Also once the folder in which the server was started, or asked last, is gone."""
    mine = composed("model=tiny", "method=base", "data=local", "data.path=mine.jsonl", "eval.tasks=[]")
    rows = "".join(json.dumps({"question": f"{i}?", "answer": f"{i}"}) + "\n" for i in range(200))
    statuses = {}
    with open(tmp_path / "log", "wb") as log:
        for name in ("empty", "full", "another"):
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            if name == "full":
                Path("mine.jsonl").write_text(rows)
            statuses[name], _ = ask(server, log, encode(CheckCells([mine])))
            shutil.rmtree(tmp_path / name)
    assert statuses == {"empty": 2, "full": 0, "another": 2}


def clean(monkeypatch):
    for name in [name for name in os.environ if env.ALLOCATOR.fullmatch(name)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def elsewhere(server, tmp_path_factory) -> SimpleNamespace:
    """A job in another environment, in which libgomp tells of itself: its exit status, log, and the holders."""
    log = tmp_path_factory.mktemp("elsewhere") / "log"
    with open(log, "wb") as stderr, pytest.MonkeyPatch.context() as patch:
        before = ask(server, stderr), server._holder.process.pid
        clean(patch)
        patch.setenv("OMP_DISPLAY_ENV", "verbose")  # of libgomp, when it is loaded
        after = ask(server, stderr), server._holder.process.pid
    return SimpleNamespace(answers=[before[0], after[0]], holders=[before[1], after[1]], said=log.read_text())


def test_another_environment_is_another_holder(elsewhere):
    assert elsewhere.answers == [(0, []), (0, [])]
    assert elsewhere.holders[0] != elsewhere.holders[1]


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp's own words")
def test_threads_of_a_job_sleep_while_they_wait(elsewhere):
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in elsewhere.said
    assert "GOMP_SPINCOUNT = '1000'" in elsewhere.said


def test_variables_that_the_user_set_are_kept(monkeypatch):
    clean(monkeypatch)
    ours = {name: value for name, value in environment().items() if env.ALLOCATOR.fullmatch(name)}
    kernels = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}
    assert ours == WAITING | kernels | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")  # PYTORCH_ALLOC_CONF would go before it
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "0")
    theirs = {name: value for name, value in environment().items() if env.ALLOCATOR.fullmatch(name)}
    own = {"OMP_WAIT_POLICY": "active", "TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"}
    assert theirs == own | {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}


def test_a_holder_that_died_is_replaced(server, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        if server._holder is None:  # another test's serves as well
            ask(server, log)
        server._holder.process.kill()
        server._holder.process.wait()
        assert ask(server, log) == (0, [])


def test_a_server_ends_although_a_process_was_forked_beside_it(tmp_path):
    """The forked process keeps a copy of the channel open."""
    server = Server()
    with open(tmp_path / "log", "wb") as log:
        assert ask(server, log) == (0, [])
    beside = get_context("fork").Process(target=time.sleep, args=(30,))
    beside.start()
    try:
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 20
    finally:
        beside.kill()
        beside.join()


def test_a_stopped_job_is_gone(server, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        job, pid = training(server, log, tmp_path)
        job.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert ask(server, log) == (0, [])


def test_a_job_ends_with_its_holder(server, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        job, pid = training(server, log, tmp_path)
        server._holder.process.kill()
        gone([pid])
        assert job.wait() == -signal.SIGKILL
        assert ask(server, log) == (0, [])


def test_a_job_that_is_stopped_before_it_was_asked_leaves_nothing(server, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        ask(server, log)
        start, holder = time.monotonic(), server._holder.process
        server.start(log).stop()
        assert holder.poll() is not None
        assert time.monotonic() - start < 5
        assert ask(server, log) == (0, [])


@pytest.mark.parametrize("asked", [True, False])
def test_a_sweep_that_is_killed_leaves_no_process(tmp_path, asked):
    words = "import sys; from harness.sweep.fork_server import Server; s = Server(); job = s.start(sys.stderr.buffer)"
    words += "; print(s._holder.process.pid, flush=True); job.request.write(sys.argv[1]); job.request.flush(); "
    words += "job.request.close() if sys.argv[1] else None; [print(line, flush=True) for line in job.lines()]"
    request = endless(tmp_path) if asked else ""
    sweep = subprocess.Popen([sys.executable, "-c", words, request], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with sweep.stdout as told:
        holder = int(told.readline())
        jobs = []
        if asked:
            until_a_step(told)
            jobs = jobs_of(holder)
        sweep.kill()
        sweep.wait()
    gone([holder, *jobs])


def endless(folder: Path) -> str:
    """A request for a cell that would train for hours."""
    cell = tiny("train.max_steps=20000")
    return encode(RunCell(cell, "test", str(folder / "cell.json")))


def training(server: Server, stderr: IO[bytes], folder: Path) -> tuple[Job, int]:
    """A job that runs such a cell, and its process; returns when it trains."""
    ask(server, stderr)  # so that the holder is there
    job = server.start(stderr)
    with job.request:
        job.request.write(endless(folder))
    until_a_step(job.events)
    (pid,) = jobs_of(server._holder.process.pid)
    return job, pid


def until_a_step(lines: IO[str]) -> None:
    """Read what a job reports, up to a training step."""
    events = (decode_event(line) for line in lines if line.strip())
    assert any(getattr(event, "step", None) for event in events), "it ended before it trained"


def gone(pids: list[int]) -> None:
    """Wait until none of the processes runs; a holder may first have to end its imports."""
    until = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)


def jobs_of(holder: int) -> list[int]:
    """Process ids of its jobs, once there are any."""
    until = time.monotonic() + 60
    while not (found := Path(f"/proc/{holder}/task/{holder}/children").read_text().split()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return [int(job) for job in found]


def alive(pid: int) -> bool:
    """Whether the process runs: one that ended and whose parent has not asked yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
