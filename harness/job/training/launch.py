"""Starts the ranks of a cell on several devices, by torch's elastic launcher, on one machine or several.

On each machine a job calls `run`. The launcher starts that machine's ranks and ends them together: with the job, with
the first that fails, and with those of other machines. The first machine's job reports to the sweep. The machines share
a store on the first, where the launcher's ranks meet as well:

    request      what the first machine was asked for, so that all run the same
    joined/N     machine N is here
    beat/N       grows while machine N is alive
    failures     counts the ranks that raised: the first leaves the record
    end          how the ranks ended: see Ending
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from harness import redact
from harness.errors import UserError, first_line
from harness.job.measure import device
from harness.job.training import rank_process
from harness.protocol import Rendezvous, Report, RunCell, decode_request, encode

ALONE = Rendezvous(nodes=1, number=0, host="127.0.0.1", port=0, seconds=60.0)
GLANCE = 0.2  # seconds between looks at the ranks and at the other machines
MOMENT = 1.0  # seconds in which the launcher learns that a rank of this machine died
REACH = 20.0  # seconds to reach the first machine, whose port was open just now
SILENCE = 10.0  # seconds without a beat after which a machine has left
REQUEST, FAILURES, END = "request", "failures", "end"  # keys of the store


@dataclass(frozen=True)
class Ending:
    """How the ranks of a cell ended, if not all well: by one of these.

    recorded: one left the record. refused: one refused its input, with this sentence. rank, code, reason: one died with
    this exit status, on machine `node`; the reason is what it raised. reason alone: a machine left. stopped: the job of
    a machine was stopped.
    """

    recorded: bool = False
    refused: str | None = None
    rank: int | None = None
    code: int | None = None
    node: int | None = None
    reason: str | None = None
    stopped: bool = False


def run(devices: int, job: Callable[..., Any], request: RunCell, report: Report, rendezvous: Rendezvous = ALONE) -> int:
    """Run ``job(request, report, rank)`` in `devices` ranks on each machine, and pass on what the first reports.

    Returns the exit status: 0 on the first machine if there is a record, and on the others if training ended well.
    Raises UserError if a rank refuses its input, a device is missing, or the machines do not meet. No rank of this
    machine outlives this call.
    """
    store = _open(rendezvous) if rendezvous.number == 0 else _reach(rendezvous)
    if store is None or store.check([END]):
        return 1  # those who met here are done
    try:
        device.check(devices)
        if rendezvous.nodes > 1:
            request = _agree(store, request, rendezvous, report)
    except UserError as error:
        _tell(store, Ending(refused=str(error)))
        raise
    # Not forked beside an accelerator: its libraries may have used the device, and then forks fail.
    method = "spawn" if torch.accelerator.is_available() else "fork"
    ours, theirs = zip(*(get_context(method).Pipe() for _ in range(devices)), strict=True)
    moment = MOMENT if rendezvous.nodes == 1 else SILENCE + MOMENT
    watch = Watch(list(ours), store, rendezvous, report)
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=rendezvous.nodes,
            max_nodes=rendezvous.nodes,
            nproc_per_node=devices,
            run_id="cell",
            rdzv_backend="static",
            rdzv_endpoint=f"{rendezvous.host}:{store.port}",
            rdzv_configs={"rank": rendezvous.number, "timeout": 60},  # all machines are here already
            max_restarts=0,
            start_method=method,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            virtual_local_rank=torch.cuda.is_available(),  # each sees its own GPU alone, as a cell on one device
        )
        watch.start()
        try:
            elastic_launch(config, rank_process.start)(
                pickle.dumps((job, request)), list(theirs), moment, _visible(devices, request)
            )
        except ChildFailedError as error:
            watch.stop()  # what that rank said first counts
            watch.end(_failure(error, rendezvous))
        except SignalException:  # from the watch, or from who started this job
            watch.end(Ending(stopped=True))
        except DistError as error:
            watch.end(Ending(reason=f"The machines lost each other before training: {first_line(error)}."))
        finally:
            watch.stop()
    return _exit_status(watch, rendezvous, report)


def _visible(devices: int, request: RunCell) -> str | None:
    """The CUDA devices of a cell whose model is sharded, as CUDA_VISIBLE_DEVICES names them; null of another."""
    if not (torch.cuda.is_available() and isinstance(request, RunCell) and request.cell.settings.train.sharded):
        return None
    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices))))
    return ",".join(named.split(",")[:devices])


def _exit_status(watch: Watch, rendezvous: Rendezvous, report: Report) -> int:
    """The exit status, after the sweep was told how the ranks ended. Raises UserError if one refused its input."""
    ending = watch.ending
    if ending is None:
        return 0
    if ending.refused is not None:
        raise UserError(ending.refused)
    if rendezvous.number > 0:
        return 1
    if ending.recorded:
        report({"phase": "recorded"})
        return 0
    if not ending.stopped:
        told = {name: getattr(ending, name) for name in ("rank", "code", "node", "reason")}
        report(watch.last | {name: value for name, value in told.items() if value is not None})
    return 1


def _failure(error: ChildFailedError, rendezvous: Rendezvous) -> Ending:
    """The rank that the launcher saw fail first."""
    rank, failure = error.get_first_failure()
    raised = failure.message["message"] if isinstance(failure.message, dict) else None
    reason = None if raised is None else redact.redact(raised).splitlines()[0]
    node = rendezvous.number if rendezvous.nodes > 1 else None
    return Ending(rank=rank, code=failure.exitcode, node=node, reason=reason)


# Where machines meet


def _open(rendezvous: Rendezvous) -> TCPStore:
    """The store of the first machine, new. Raises UserError if its port can't be had."""
    limit = timedelta(seconds=rendezvous.seconds)
    try:
        return TCPStore(rendezvous.host, rendezvous.port, None, True, limit, wait_for_workers=False, multi_tenant=True)
    except (DistError, RuntimeError) as error:
        where = f"{rendezvous.host}:{rendezvous.port}"
        if "EADDRINUSE" in str(error):
            raise UserError(
                f"MASTER_PORT must be a free port of the first machine, got {where}, which is in use."
            ) from None
        raise UserError(f"The first machine can't open {where} for the others: {first_line(error)}.") from None


def _reach(rendezvous: Rendezvous) -> TCPStore | None:
    """The store of the first machine; None if it is gone."""
    limit = timedelta(seconds=min(rendezvous.seconds, REACH))
    try:
        return TCPStore(rendezvous.host, rendezvous.port, None, False, limit, wait_for_workers=False)
    except (DistError, RuntimeError) as error:
        print(f"Machine {rendezvous.number} does not reach the first one: {first_line(error)}.", file=sys.stderr)
        return None


def _agree(store: TCPStore, request: RunCell, rendezvous: Rendezvous, report: Report) -> RunCell:
    """Wait until all machines are here; returns the first one's request. Raises UserError if they do not match."""
    if rendezvous.number > 0:
        first = decode_request(store.get(REQUEST))
        assert isinstance(first, RunCell)  # as the first machine has put it there
        if first.cell.id != request.cell.id:
            raise UserError(f"All machines must run one cell, got {first.cell.name} and {request.cell.name}.")
        if store.add(f"joined/{rendezvous.number}", 1) > 1:
            raise UserError(f"NODE_RANK must differ from machine to machine, got {rendezvous.number} twice.")
        return replace(first, rendezvous=rendezvous)
    report({"phase": "join"})
    store.set(REQUEST, encode(request))
    until = time.monotonic() + rendezvous.seconds
    missing = list(range(1, rendezvous.nodes))
    while missing := [number for number in missing if not store.check([f"joined/{number}"])]:
        if store.check([END]):
            raise UserError(_ending(store.get(END)).refused)
        if time.monotonic() > until:
            raise UserError(
                f"train.nodes={rendezvous.nodes} requires {rendezvous.nodes} machines, but within "
                f"{rendezvous.seconds:g} seconds {', '.join(map(str, missing))} did not join at "
                f"{rendezvous.host}:{store.port} (NODE_RANK)."
            )
        time.sleep(GLANCE)
    return request


def _tell(store: TCPStore, ending: Ending) -> Ending:
    """Tell the other machines how the ranks ended; returns how they did, as another machine may have told before.

    Raises DistError or RuntimeError if the store is gone with the first machine.
    """
    return _ending(store.compare_set(END, "", json.dumps(asdict(ending))))


def _ending(told: bytes) -> Ending:
    return Ending(**json.loads(told))


# While the ranks run


class Watch:
    """Follows the ranks of this machine and the other machines, in a thread beside the launcher.

    It ends the launcher, and with it the ranks, if another machine ended or left. last: what the first rank reported
    last.
    """

    def __init__(self, links: list[Connection], store: TCPStore, rendezvous: Rendezvous, report: Report):
        self.ending: Ending | None = None
        self.last: dict[str, Any] = {"phase": "start"}
        self._links, self._store, self._rendezvous, self._report = links, store, rendezvous, report
        self._speaker = links[0] if rendezvous.number == 0 else None
        self._together = rendezvous.nodes > 1  # whether training still needs the other machines
        self._outer = False  # whether the launcher is to be told of an end elsewhere
        self._beats = 0
        self._heard = {number: (0, time.monotonic()) for number in range(rendezvous.nodes)}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop following, after all that the ranks have reported."""
        self._stopping.set()
        self._thread.join()

    def end(self, ending: Ending) -> None:
        """Note how the ranks ended, on all machines, unless that is known already."""
        if self.ending is None:
            self.ending = ending
            with suppress(DistError, RuntimeError):
                self.ending = _tell(self._store, ending)

    def _follow(self) -> None:
        try:
            while not self._stopping.is_set():
                for link in self._ready(GLANCE):
                    self._hear(link, link.recv())
                if self._together:
                    self._look_around()
            while ready := self._ready(0.0):
                for link in ready:
                    self._hear(link, link.recv())
        except Exception as error:  # else a rank would wait for an answer forever
            what = f"{type(error).__name__}: {first_line(error)}"
            self._ends_elsewhere(Ending(reason=f"Following the cell's processes failed: {what}."))
            while self._outer and not self._stopping.wait(GLANCE):
                self._end_launcher()
            raise

    def _ready(self, seconds: float) -> list[Connection]:
        """The ranks that have something to tell within `seconds`."""
        ready = wait(self._links, seconds)
        return [link for link in self._links if link in ready]

    def _hear(self, link: Connection, event: dict[str, Any]) -> None:
        """Handle the `event` of a rank."""
        if "refused" in event:
            self.end(Ending(refused=event["refused"]))
        elif "failed" in event:
            with suppress(DistError, RuntimeError):  # a lost store is seen next time round
                if self._store.add(FAILURES, 1) == 1:
                    self._speaker = link
                    link.send(True)
        elif "apart" in event:
            self._together = False
        elif link is self._speaker:
            if event.get("phase") == "recorded":
                self.end(Ending(recorded=True))
            else:
                if "phase" in event:  # a note says nothing of where the cell stands
                    self.last = event
                self._report(event)

    def _look_around(self) -> None:
        """Give a sign of life; end the ranks here if another machine has ended or gives none."""
        if self.ending is None:
            try:
                self._beats += 1
                self._store.set(f"beat/{self._rendezvous.number}", str(self._beats))
                if self._store.check([END]):
                    self._ends_elsewhere(Ending(stopped=True))  # the store knows better
                elif (gone := self._silent()) is not None:
                    words = f"Machine {gone} left: it gave no sign of life for {SILENCE:g} seconds."
                    self._ends_elsewhere(Ending(reason=words))
            except (DistError, RuntimeError):
                self._ends_elsewhere(Ending(reason="Machine 0 left."))
        self._end_launcher()

    def _end_launcher(self) -> None:
        """End the launcher, and with it the ranks, if it is to be told of an end and is ready for it."""
        if self._outer and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            self._outer = False
            os.kill(os.getpid(), signal.SIGTERM)

    def _ends_elsewhere(self, ending: Ending) -> None:
        self._outer = True
        self.end(ending)

    def _silent(self) -> int | None:
        """A machine without a beat for SILENCE seconds; the first one looks for that."""
        if self._rendezvous.number > 0:
            return None
        for number in range(1, self._rendezvous.nodes):
            key = f"beat/{number}"
            beat = int(self._store.get(key)) if self._store.check([key]) else 0
            if beat != self._heard[number][0]:
                self._heard[number] = beat, time.monotonic()
            elif time.monotonic() - self._heard[number][1] > SILENCE:
                return number
        return None
