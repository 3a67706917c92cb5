"""Several machines for one cell, by torch's elastic launcher: the same losses as on one, and what if they don't meet.

A machine is a process on loopback here, with ranks of its own. The first runs the cell as a sweep does.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from job_helpers import no_peak, run_leased  # noqa: F401
from several_devices import alike, go, short

from harness.errors import UserError
from harness.job.run_cell import run_cell
from harness.job.training import distributed, launch
from harness.protocol import Progress, Rendezvous, RunCell, decode_request, encode
from harness.record import Cell, Precautions
from harness.sweep import runner
from harness.sweep.store import Study

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(torch.accelerator.is_available(), reason="its devices are a CPU's"),
]
TWO = ("train.nodes=2",)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def place(number: int, port: int, seconds: float = 60) -> Rendezvous:
    return Rendezvous(2, number, "127.0.0.1", port, seconds)


def train_along(cell: Cell, port: int, seconds: float, job: Callable[..., Any]) -> None:
    """The job of the second machine. Exits with 2 and leaves the sentence, if it refuses."""
    os.setsid()
    until = time.monotonic() + seconds
    while not runner._listens("127.0.0.1", port) and time.monotonic() < until:  # as a sweep's second machine waits
        time.sleep(0.1)
    request = RunCell(cell, "study", "nowhere.json", rendezvous=place(1, port, seconds))
    try:
        code = launch.run(cell.settings.train.devices, job, request, print, request.rendezvous)
    except UserError as error:
        Path(f"refused-{port}").write_text(str(error))
        code = 2
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def second(cell: Cell, port: int, seconds: float = 60, job: Callable[..., Any] = run_cell) -> Iterator[BaseProcess]:
    """The second machine, in the working folder; it must end by itself."""
    machine = get_context("fork").Process(target=train_along, args=(cell, port, seconds, job))
    machine.start()
    try:
        yield machine
        machine.join(60)
        assert machine.exitcode is not None
    finally:
        machine.kill()
        machine.join()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("method=lora", "train.grad_accum=2", "train.bucketing=2"),
        ("method=full", "train.devices=2", "train.parallel=fsdp"),
    ],
)
def test_two_machines_come_to_what_one_does(tmp_path, alone, settings):
    cell, port = short(*settings, *TWO), free_port()
    events: list[Progress] = []
    with second(cell, port) as other:
        record = go(tmp_path, cell, events.append, rendezvous=place(0, port))
    one = alone(*(s for s in settings if not s.startswith(("train.devices", "train.parallel"))))
    alike(record, one)
    assert other.exitcode == 0
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases[:3] == ["join", "start", "load"]
    train = record.cell.settings.train
    assert (train.nodes, train.total_devices) == (2, 2 * train.devices)
    # Each device has its share of the batch, and with fsdp of the model.
    assert record.probe.peak.activations < one.probe.peak.activations
    if train.sharded:
        assert record.probe.resident.weights == pytest.approx(one.probe.resident.weights / 4, rel=0.02)


@pytest.mark.slow
def test_a_machine_that_leaves_is_the_reason_and_the_cell_resumes(tmp_path, alone):
    cell, port = short("method=lora", *TWO), free_port()
    careful = Precautions(save_every=2)
    with second(cell, port) as other:

        def leave(event: Progress) -> None:
            if event.step == 3:
                os.kill(other.pid, signal.SIGKILL)

        record = go(tmp_path, cell, leave, precautions=careful, rendezvous=place(0, port))
    assert record.status == "failed"
    assert record.failure.phase in ("train", "validate")
    assert record.failure.reason == "Machine 1 left: it gave no sign of life for 10 seconds."
    with second(cell, port):
        record = go(tmp_path, cell, precautions=careful, rendezvous=place(0, port))
    alike(record, alone("method=lora"))
    assert record.train.resumed_at in ([2], [4])  # when the test hears of step 3, step 4 may be saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "phase", "reason"),
    [
        ("raises", "train", "RuntimeError: as it was told"),
        (
            "dies",
            "train",
            "Rank 1 of the cell's processes was killed by SIGKILL (the kernel does so when memory runs out); its last "
            "words are in the output of machine 1.",
        ),
    ],
)
def test_a_rank_of_another_machine_gives_its_reason(tmp_path, harm, phase, reason):
    cell, port = short("method=lora", *TWO, harm=harm), free_port()
    with second(cell, port) as other:
        record = go(tmp_path, cell, rendezvous=place(0, port))
    assert (record.status, record.failure.phase, record.failure.reason) == ("failed", phase, reason)
    assert other.exitcode == 1


def metering(request: RunCell, report: launch.Report, rank: distributed.Rank) -> None:
    """On machines that each used 3 joules, of which every rank knows."""
    _, _, joules = distributed.slowest(1.0, {}, 3.0, rank.accelerator(sharded=False, bf16=False))
    Path(f"joules-{rank.number}").write_text(str(joules))


@pytest.mark.slow
def test_joules_are_those_of_all_machines():
    cell, port = short("method=lora", "train.devices=2", *TWO), free_port()
    with second(cell, port, job=metering):
        assert launch.run(2, metering, asked(cell), lambda event: None, place(0, port)) == 0
    assert [Path(f"joules-{number}").read_text() for number in range(4)] == ["6.0"] * 4


# Machines that don't meet


def refused(port: int) -> str:
    return Path(f"refused-{port}").read_text()


@pytest.mark.slow
def test_whom_nobody_joins_waits_no_longer_than_it_should(tmp_path):
    cell, port = short("method=lora", *TWO), free_port()
    study = Study(tmp_path, "study")
    with pytest.raises(UserError) as error:
        run_leased(cell, study, None, lambda event: None, rendezvous=place(0, port, 2))
    assert str(error.value) == (
        f"train.nodes=2 requires 2 machines, but within 2 seconds 1 did not join at 127.0.0.1:{port} (NODE_RANK)."
    )
    assert not study.path(cell).exists()
    with second(cell, port, seconds=2) as other:
        pass
    assert other.exitcode == 1


def asked(cell: Cell) -> RunCell:
    return RunCell(cell, "study", "nowhere.json")


@pytest.mark.slow
def test_machines_that_run_other_cells_say_so():
    one, two = short("method=lora", *TWO), short("method=full", *TWO)
    port = free_port()
    with second(two, port) as job, pytest.raises(UserError) as error:
        launch.run(1, run_cell, asked(one), lambda event: None, place(0, port, 5))
    assert job.exitcode == 2
    assert str(error.value) == refused(port) == f"All machines must run one cell, got {one.name} and {two.name}."


@pytest.mark.slow
def test_two_machines_with_one_number_say_so():
    """Of three, so that the first waits while the second number 1 comes."""
    cell, port = short("method=lora", *TWO), free_port()
    store = launch._open(place(0, port))
    store.set(launch.REQUEST, encode(asked(cell)))
    store.add("joined/1", 1)
    with second(cell, port) as job:
        pass
    assert (job.exitcode, refused(port)) == (2, "NODE_RANK must differ from machine to machine, got 1 twice.")


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            launch._open(place(0, port))
    assert str(error.value) == (
        f"MASTER_PORT must be a free port of the first machine, got 127.0.0.1:{port}, which is in use."
    )


def test_the_request_crosses_with_its_rendezvous():
    request = dataclasses.replace(asked(short()), rendezvous=place(1, 29500))
    assert decode_request(encode(request)) == request
