"""Runs a cell in a fresh process of its own, and answers for it: whatever happens there, a record is left.

The job (harness/job/__main__.py) reads its request on standard input, reports progress as JSON lines on
standard output and writes the record itself; what it and its libraries print goes to the cell's log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from harness import env, record, redact
from harness.errors import UserError
from harness.record import Cell, Failure, Precautions, Record, SmallerBatches
from harness.settings import EvalSettings
from harness.sweep import micro_batch
from harness.sweep.fork_server import Server
from harness.sweep.lease import Claim, Held
from harness.sweep.store import Study

# What no count of tensors sees: CUDA's context and the libraries' workspaces, or the interpreter and its libraries.
BESIDE = 2**30
TIGHT = 0.9  # above this share of a budget an allocator's fragmentation decides

_server = Server()  # of this process


def check(
    cells: list[Cell], data_root: str | None, asking: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Have a job look at what only the libraries know (models, tasks, data, layer sizes) before a sweep starts.

    asking: by id of the cells whose model is behind an API, how it is asked. Returns what they would ask for.
    Raises UserError with the first thing that can't work; warns if others use this machine.
    """
    _warn_of_load()
    request = {"check": [dataclasses.asdict(c) for c in cells], "data_root": _absolute(data_root), "warn": True}
    answers: list[dict] = []
    _ask("The check before the sweep", request | {"asking": asking or {}}, answers.append)
    return {answer["id"]: answer["estimate"] for answer in answers}


def doctor(models: dict[str, dict], data: dict[str, dict], data_root: str | None) -> dict:
    """What a job sees of this machine, of `models` and of `data`: the facts of ``harness/job/machine.py``.

    Raises UserError if a job can't even start; warns as `check` does.
    """
    _warn_of_load()
    request = {"doctor": {"models": models, "data": data, "data_root": _absolute(data_root)}, "warn": True}
    answers: list[dict] = []
    _ask("The job that looks at the machine", request, answers.append)
    return answers[-1]["doctor"]


def plan(
    cells: list[tuple[Cell, dict | None]],
    data_root: str | None,
    budget: int | None = None,
    kernels: str | None = None,
) -> dict[str, Any]:
    """A job's predictions for `cells`, each with its model's dimensions or null: ``harness/job/predict.py``.

    Returns predictions, in order; budget, in bytes, of this machine's device if none was given; kernels; environment.
    """
    request = {
        "plan": [{"cell": dataclasses.asdict(cell), "architecture": architecture} for cell, architecture in cells],
        "data_root": _absolute(data_root),
        "budget": budget,
        "beside": BESIDE,
        "tight": TIGHT,
        "kernels": kernels,
    }
    answers: list[dict] = []
    _ask("The job that predicts memory", request, answers.append)
    return {"predictions": [a["prediction"] for a in answers if "prediction" in a]} | answers[0]


def check_tasks(settings: EvalSettings, data_root: str | None) -> None:
    """Have a job look whether the tasks of `settings` (as `eval` of a cell) can be had; UserError if not."""
    request = {"tasks": record.encode(settings), "data_root": _absolute(data_root)}
    _ask("The check of the tasks", request, lambda _: None)


def score(
    cell: Cell,
    study: Study,
    claim: Claim,
    settings: EvalSettings,
    data_root: str | None,
    on_event: Callable[[dict], None],
) -> Record:
    """Have the recorded `cell`, claimed by `claim`, scored by `settings` (as its `eval`); its record with what came.

    Raises UserError if it can't be, and the record is as it was then.
    """
    path, log = study.path(cell), study.log(cell)
    request = {"path": str(path.absolute()), "tasks": record.encode(settings), "data_root": _absolute(data_root)}

    def follow(event: dict) -> None:
        on_event(event)
        claim(event)

    try:
        with open(log, "ab") as stderr:
            code = _converse(request, stderr, follow, claim)
    finally:
        redact.scrub(log)
    if code:
        raise UserError(f"{cell.name} is not scored: {_how_it_ended({}, code, log)}")
    return record.read(path)


def synthesize(asking: dict[str, Any], on_event: Callable[[dict], None]) -> dict[str, Any]:
    """Have a job ask for new problems, as ``harness/job/data/generators/synthesis.py`` says; its summary. on_event is told how far."""
    asking |= {"data_root": _absolute(asking["data_root"])}
    return _answer("The job that asks for problems", {"synthesize": asking}, on_event)["summary"]


def ask(asking: dict[str, Any], on_event: Callable[[dict], None]) -> dict[str, Any]:
    """Have a job put prompts to models, as ``harness/job/evaluate/prompting.py`` says; its answers. on_event is told whom it asks."""
    return _answer("The job that asks models", {"ask": asking}, on_event)["answers"]


def _answer(what: str, request: dict, on_event: Callable[[dict], None]) -> dict:
    """The last event of a job that answers `request`; the others go to `on_event` as they come."""
    last: list[dict] = []

    def follow(event: dict) -> None:
        last[:] = [event]
        on_event(event)

    _ask(what, request, follow)
    return last[0]


def _ask(what: str, request: dict, on_event: Callable[[dict], None]) -> None:
    """Have a job answer `request`; UserError, which begins with `what`, if it refuses or breaks off."""
    with tempfile.TemporaryFile() as stderr:
        code = _converse(request, stderr, on_event)
        if code:
            stderr.seek(0)
            words = stderr.read().decode(errors="replace").strip()[-2000:]
            raise UserError(f"{what} broke off (exit status {code}): {words}")


def _warn_of_load() -> None:
    if words := env.busy():
        _warn(words)


def _warn(words: str) -> None:
    tqdm.write(f"warning: {words}", file=sys.stderr)  # beside the bars, where there are any


def run(
    cell: Cell,
    study: Study,
    claim: Claim,
    data_root: str | None,
    on_event: Callable[[dict], None],
    precautions: Precautions | None = None,
    warn: bool = False,
    save: str = "none",
    tracker: str | None = None,
    asking: dict[str, Any] | None = None,
) -> Record:
    """Run `cell`, claimed by `claim`, and return its record, which lies in the study's folder by then.

    warn: whether to say so if others use this machine. save, tracker: as in harness.config.Config.
    asking: how its model is asked, if that is behind an API.

    Raises UserError if the job refuses its input, Held if another process took the claim over; then no record was
    written.
    """
    precautions = precautions or Precautions()
    path, log = study.path(cell).absolute(), study.log(cell)
    request = {
        "cell": dataclasses.asdict(cell),
        "study": study.name,
        "path": str(path),
        "data_root": _absolute(data_root),
        "warn": warn,
        "checkpoints": str(study.checkpoints(cell).absolute()),
        "precautions": dataclasses.asdict(precautions),
        "save": save,
        "tracker": tracker,
        "asking": asking,
    }
    if warn:
        _warn_of_load()
    last: dict = {}
    noted = 0.0

    def follow(event: dict) -> None:
        nonlocal last, noted
        another = event["phase"] != last["phase"]
        last = event
        on_event(event)
        if another or time.monotonic() - noted > 1:  # steps may come faster than a shared disk likes
            noted = time.monotonic()
            claim(event)

    def attempt(smaller: SmallerBatches | None, stderr: IO[bytes]) -> Record:
        nonlocal last
        last = {"phase": "start"}
        started, clock, reason = datetime.now(UTC), time.monotonic(), None
        asked = request | {"smaller_batches": None if smaller is None else dataclasses.asdict(smaller)}
        try:
            code = _converse(asked, stderr, follow, claim, precautions.timeout)
        except _Overdue:
            reason = f"The cell was ended: it took longer than timeout={precautions.timeout:g} seconds."
        if last["phase"] != "recorded":  # an earlier failure may lie at `path`, so its existence says nothing
            if claim.lost:
                raise Held(f"{cell.name} was stopped: another sweep took it over, as this one gave no sign of life.")
            failed = Record(
                cell=cell,
                study=study.name,
                status="failed",
                started=started.isoformat(timespec="seconds"),
                seconds=time.monotonic() - clock,
                environment=env.describe(),
                failure=Failure(last["phase"], last.get("step"), reason or _how_it_ended(last, code, log)),
                precautions=precautions,
                smaller_batches=smaller,
                save=save,
                tracker=tracker,
            )
            record.write(failed, path)
        return record.read(path)

    halves = precautions.on_oom or cell.settings.train.sizes_itself
    smaller = micro_batch.to_begin_with(study.recorded(cell)) if halves else None
    if smaller is None and cell.settings.train.sizes_itself:
        on_event({"phase": "plan"})
        smaller = micro_batch.planned(cell, plan([(cell, None)], data_root)["predictions"][0])
    try:
        with open(log, "wb") as stderr:
            found = attempt(smaller, stderr)
            while halves and (smaller := micro_batch.smaller(found)) is not None:
                _warn(f"{cell.name} ran out of memory; again with {smaller.batch_size} sequences a micro-batch.")
                found = attempt(smaller, stderr)
    except UserError:
        log.unlink(missing_ok=True)  # it belongs to no record
        raise
    finally:
        if log.exists():
            redact.scrub(log)  # libraries print what they like
    return found


def _how_it_ended(last: dict, code: int, log: Path) -> str:
    """A sentence on a job whose last event was `last`: itself with exit status `code`, or one of its ranks."""
    who = "The cell's process"
    if "rank" in last:
        who, code = f"Rank {last['rank']} of the cell's processes", last["code"]
    died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    hint = " (the kernel does so when memory runs out)" if code == -signal.SIGKILL else ""
    return f"{who} {died}{hint}; its last words are in {log.name}."


class _Overdue(Exception):
    """The job took longer than it may, and was ended."""


def _converse(
    request: dict,
    stderr: IO[bytes],
    on_event: Callable[[dict], None],
    claim: Claim | None = None,
    timeout: float | None = None,
) -> int:
    """Run a job on `request`, pass its events on, and return its exit status; UserError if it refuses.

    The job works for `claim`: that outlives no job, and the job is stopped if it is lost. After `timeout` seconds it
    is ended, and _Overdue raised.
    """
    job = _server.start(stderr)
    refusal = None
    overdue = threading.Event()

    def end() -> None:
        overdue.set()
        job.stop()

    watch = threading.Timer(timeout or 0, end)
    watch.daemon = True
    if timeout:
        watch.start()
    try:
        # If it dies before it has read, its exit status tells.
        with contextlib.suppress(BrokenPipeError), job.request:
            json.dump(request, job.request)
        for line in job.lines():
            event = json.loads(line)
            if "refused" in event:
                refusal = event["refused"]
            elif "warning" in event:
                _warn(event["warning"])
            else:
                if claim is not None:
                    claim.works(job.holder, job.stop)
                    claim = None
                on_event(event)
        code = job.wait()
    except BaseException:
        job.stop()
        raise
    finally:
        watch.cancel()
    if overdue.is_set():
        raise _Overdue
    if refusal is not None:
        raise UserError(refusal)
    return code


def _absolute(folder: str | None) -> str | None:
    return None if folder is None else str(Path(folder).expanduser().absolute())
