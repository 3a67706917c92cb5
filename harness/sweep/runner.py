"""Runs a cell in a fresh process of its own, and answers for it: whatever happens there, a record is left.

The job (harness/job/__main__.py) reads its request on standard input, reports progress as JSON lines on
standard output and writes the record itself; what it and its libraries print goes to the cell's log.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from harness import env, protocol, record, redact, units
from harness.errors import UserError, first_line
from harness.protocol import NO_PATHS, LocalPaths, PlannedCell, Progress, Request, RunCell
from harness.record import Calibration, Cell, Failure, Record, SmallerBatches
from harness.settings import DataSettings, EvalSettings
from harness.sweep import micro_batch
from harness.sweep.conversation import Conversation, Overdue, warn
from harness.sweep.fork_server import Server
from harness.sweep.lease import Held, Lease
from harness.sweep.prediction_cache import PredictionCache
from harness.sweep.store import Study, discard

# What no count of tensors sees: CUDA's context and the libraries' workspaces, or the interpreter and its libraries.
BESIDE = 2**30
TIGHT = 0.9  # above this share of a budget the allocator's fragments of steps of many shapes decide

OnEvent = Callable[[Progress], None]

_server = Server()  # of this process


def prepare(request: type[Request]) -> None:
    """Start importing the libraries of jobs for such a `request`, which takes seconds, before it can be written."""
    _server.prepare(request.libraries)


def check(
    cells: list[Cell],
    data_root: str | None,
    extra: dict[str, dict[str, Any]] | None = None,
    local: LocalPaths = NO_PATHS,
    elsewhere: bool = False,
) -> dict[str, dict[str, Any]]:
    """Have a job check what only the libraries know (models, tasks, data, layer sizes) before a sweep starts.

    extra: of the cells that plug-ins run, by id. elsewhere: whether `cells` run on other machines, so that this one's
    devices say nothing. Returns what cells would cost, by id.
    Raises UserError for the first thing that does not work; warns if others use this machine.
    """
    _warn_of_load()
    request = protocol.CheckCells(cells, _absolute(data_root), extra or {}, True, local, elsewhere)
    answers = _ask("The check before the sweep", request)
    return {answer["id"]: answer["cost"] for answer in answers}


def impossible(
    cells: list[Cell], data_root: str | None, local: LocalPaths = NO_PATHS, elsewhere: bool = False
) -> dict[str, dict[str, Any]]:
    """Which of `cells` can't run, by id: `reason`, as peft, the model or a kernel has it, and `environment`.

    elsewhere: as of `check`. Raises UserError for data that can't be read.
    """
    request = protocol.SortCells(cells, _absolute(data_root), local=local, elsewhere=elsewhere)
    answers = _ask("The check before the sweep", request)
    return {answer["id"]: answer for answer in answers}


def doctor(models: dict[str, dict], data: dict[str, dict], data_root: str | None) -> dict[str, Any]:
    """What a job sees of this machine, of `models` and of `data`: the facts of ``harness/job/machine.py``.

    Raises UserError if a job can't even start; warns as `check` does.
    """
    _warn_of_load()
    request = protocol.ExamineMachine(models, data, _absolute(data_root), warn=True)
    return _ask("The job that looks at the machine", request)[0]


def plan(
    cells: list[PlannedCell],
    data_root: str | None,
    budget: int | None = None,
    kernels: str | None = None,
    rates: protocol.CardRates | None = None,
    calibrations: Sequence[Calibration] = (),
) -> dict[str, Any]:
    """A job's predictions for `cells`: ``harness/job/predict/``. Without budget, kernels and rates: for this machine.

    Returns predictions, in order; budget, in bytes, of this machine's device if none was given; kernels; environment;
    device and date of the calibration that is used, if one of `calibrations` applies.
    """
    request = protocol.PlanCells(cells, _absolute(data_root), budget, BESIDE, TIGHT, kernels, rates, [*calibrations])
    cache = PredictionCache(request)
    head, predictions = cache.head, [cache.prediction(planned) for planned in cells]
    missing = [i for i, prediction in enumerate(predictions) if prediction is None]
    if missing or head is None:
        left = [cells[i] for i in missing]
        head, *others = _ask("The job that predicts memory", replace(request, cells=left))
        answers = [answer["prediction"] for answer in others]
        cache.keep(head, list(zip(left, answers, strict=True)))
        for i, answer in zip(missing, answers, strict=True):
            predictions[i] = answer
    return {"predictions": predictions} | head


def calibrate(cells: list[PlannedCell], on_event: OnEvent, timeout: float | None = None) -> Calibration:
    """Have a job time the kernels of `cells` on this machine's device, in at most `timeout` seconds.

    Raises UserError if a cell can't be timed, and Overdue if it takes longer; warns as `check` does.
    """
    _warn_of_load()
    answer = _ask("The job that times kernels", protocol.CalibrateDevice(cells, warn=True), on_event, timeout)[-1]
    return record.decode(Calibration, answer)


def check_tasks(settings: EvalSettings, data: DataSettings, data_root: str | None, local: LocalPaths) -> None:
    """Have a job check that the tasks of `settings` can be loaded for cells with `data`; UserError if not."""
    _ask("The check of the tasks", protocol.CheckTasks(settings, data, _absolute(data_root), local))


def score(
    cell: Cell,
    study: Study,
    lease: Lease,
    settings: EvalSettings,
    data_root: str | None,
    on_event: OnEvent,
    local: LocalPaths = NO_PATHS,
    from_command_line: bool = False,
) -> Record:
    """Score the recorded `cell` by `settings` in a job, under `lease`. Returns its record with the new scores.

    from_command_line: whether a command line has the cell, and not the record alone.
    Raises UserError if that fails; then the record does not change.
    """
    path, log = study.path(cell), study.log(cell)
    request = protocol.Rescore(
        str(path.absolute()), settings, _absolute(data_root), local, cell if from_command_line else None
    )
    try:
        with open(record.without_link(log), "ab") as stderr, Conversation(_server.start(stderr), request, lease) as job:
            for event in job.progress():
                on_event(event)
                lease(protocol.facts(event))
    finally:
        redact.scrub(log)
    if job.exit_status:
        raise UserError(f"{cell.name} is not scored: {_how_it_ended(None, job.exit_status, log)}")
    return record.read(path)


def ask(request: Request, on_event: OnEvent, job: str = "The job that asks models") -> dict[str, Any]:
    """Serve `request` in a job; returns its last result. job: how a sentence on its failure begins."""
    return _ask(job, request, on_event)[-1]


def _ask(
    what: str, request: Request, on_event: OnEvent | None = None, timeout: float | None = None
) -> list[dict[str, Any]]:
    """The results of a job for `request`. Raises UserError, beginning with `what`, if the job refuses or dies."""
    answers: list[dict[str, Any]] = []
    with tempfile.TemporaryFile() as stderr:
        with Conversation(_server.start(stderr), request, timeout=timeout) as job:
            for event in job:
                if isinstance(event, protocol.Result):
                    answers.append(event.value)
                elif on_event is not None:
                    on_event(event)
        if job.exit_status:
            stderr.seek(0)
            words = stderr.read().decode(errors="replace").strip()[-2000:]
            raise UserError(f"{what} broke off (exit status {job.exit_status}): {words}")
    return answers


def _warn_of_load() -> None:
    if words := env.busy():
        warn(words)


def request_for(
    cell: Cell, study: Study, data_root: str | None, local: LocalPaths = NO_PATHS, **options: Any
) -> RunCell:
    """The request to run `cell` in `study`; options: the other fields of RunCell."""
    return RunCell(
        cell,
        study.name,
        str(study.path(cell).absolute()),
        _absolute(data_root),
        checkpoints=str(study.checkpoints(cell).absolute()),
        local=local,
        **options,
    )


def run(request: RunCell, study: Study, lease: Lease, on_event: OnEvent) -> Record:
    """Run the cell of `request` in a job, under `lease`. Returns its record, which is in the study's folder by then.

    A cell whose weights were kept when scoring failed is scored, not trained again.

    Raises UserError if the job refuses its input, and Held if another process took over the lease. Then there is no
    record, or the record stays as it is.
    """
    cell, path = request.cell, Path(request.path)
    earlier = study.recorded(cell)
    if earlier is not None and record.awaits_scoring(earlier) and study.weights(earlier) is not None:
        own = cell.settings.eval
        return score(cell, study, lease, own, request.data_root, on_event, request.local, from_command_line=True)
    if request.warn:
        _warn_of_load()
    halves = request.precautions.on_oom or cell.settings.train.sizes_itself
    smaller = _first_batches(request, earlier, on_event) if halves else None
    log, timeout = path.with_suffix(".log"), request.precautions.timeout
    with _opened(log) as stderr:
        while True:
            request = replace(request, smaller=smaller)
            job = Conversation(_server.start(stderr), request, lease, timeout)
            with _Attempt(request, job, lease, log) as attempt, job:
                for event in attempt.progress():
                    on_event(event)
            recorded = record.read(path)
            if not halves or (smaller := micro_batch.smaller(recorded)) is None:
                return recorded
            size = units.plural(smaller.batch_size, "sequence")
            warn(f"{cell.name} ran out of memory; again with {size} per micro-batch.")


def _first_batches(request: RunCell, earlier: Record | None, on_event: OnEvent) -> SmallerBatches | None:
    """The micro-batches to begin with, of a cell whose micro-batches may shrink; None for those it asks for.

    earlier: the cell's record, which may know what fits.
    """
    cell = request.cell
    smaller = micro_batch.for_rerun(earlier)
    if smaller is None and cell.settings.train.sizes_itself:
        on_event(Progress("plan"))
        smaller = micro_batch.planned(cell, plan([PlannedCell(cell)], request.data_root)["predictions"][0])
    return smaller


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The log of a cell's jobs, to be written. It is removed if a UserError leaves no record that it belongs to."""
    try:
        with open(record.without_link(path), "wb") as stderr:
            yield stderr
    except UserError:
        path.unlink(missing_ok=True)
        raise
    finally:
        if path.exists():
            redact.scrub(path)  # libraries print what they like


class _Attempt:
    """One attempt to run the cell of `request` in `job`: at the end of its context there is a record, or an error.

    lease: it is told of the progress, and may be lost. log: the file of what the job prints.
    Raises Held if another process took over the lease.
    """

    def __init__(self, request: RunCell, job: Conversation, lease: Lease, log: Path):
        self._request, self._job, self._lease, self._log = request, job, lease, log
        self._last = Progress("start")
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    def __enter__(self) -> _Attempt:
        return self

    def progress(self) -> Iterator[Progress]:
        """That of the job, of which the lease is told too."""
        noted = 0.0
        for event in self._job.progress():
            another = event.phase != self._last.phase
            self._last = event
            yield event
            if another or time.monotonic() - noted > 1:  # steps may come faster than a shared disk likes
                noted = time.monotonic()
                self._lease(protocol.facts(event))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> bool:
        if error is None:
            reason = _how_it_ended(self._last, self._job.exit_status, self._log)
        elif isinstance(error, Overdue):
            reason = f"The cell was ended: it took longer than timeout={error.seconds:g} seconds."
        elif _is_of_the_queue(error):
            reason = (
                f"The cell was ended by its queue ({first_line(error)}); a longer hydra.launcher.timeout_min lets it "
                "end, or hydra.launcher.max_num_timeout=3 with train.save_every, by which it resumes."
            )
        else:
            return False
        if self._last.phase != "recorded":  # an earlier failure may lie at the path, so its existence says nothing
            if self._lease.lost:
                name = self._request.cell.name
                raise Held(f"{name} was stopped: another sweep took it over, as this one gave no sign of life.")
            failed = self._request.record("failed", self._started)
            failed.seconds, failed.environment = time.monotonic() - self._clock, env.describe()
            failed.failure = Failure(self._last.phase, self._last.step, reason)
            record.write(failed, Path(self._request.path))
        return True


def _is_of_the_queue(error: BaseException) -> bool:
    """Whether submitit raised `error`: it does where this process works when Slurm is about to end it."""
    return type(error).__module__.partition(".")[0] == "submitit"


def assist(request: RunCell, rendezvous: protocol.Rendezvous, study: Study) -> None:
    """Train the cell of `request` along with the first machine, at `rendezvous`, until that has recorded it.

    Raises UserError if the first machine does not appear, or if a job refuses its input.
    """
    cell, request = request.cell, replace(request, rendezvous=rendezvous)
    until, met = time.monotonic() + rendezvous.seconds, False
    while not met or cell.name in study.running():
        if _listens(rendezvous.host, rendezvous.port):
            met = True
            if _assist_once(request) == 0:
                break
        elif not met and time.monotonic() > until:
            where = f"{rendezvous.host}:{rendezvous.port} within {rendezvous.seconds:g} seconds"
            raise UserError(
                f"Machine {rendezvous.number} found none at {where}: the first machine (NODE_RANK=0) must run the same "
                "command."
            )
        time.sleep(1)
    study.wait([cell])  # a later machine that ended before would look like one that left


def _assist_once(request: RunCell) -> int:
    """The exit status of a job that trains along; its output is shown if that is not 0."""
    with tempfile.TemporaryFile() as stderr:
        with Conversation(_server.start(stderr), request) as job:
            for _ in job:
                pass
        if job.exit_status:
            stderr.seek(0)
            print(redact.redact(stderr.read().decode(errors="replace")).strip(), file=sys.stderr)
    return job.exit_status


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def repeat(request: RunCell, study: Study, lease: Lease, on_event: OnEvent) -> Record:
    """Have the recorded cell of `request` run again, and add what was measured to its record's repeats.

    Returns the record of the new run, which is not kept, nor are its scores and weights. Raises as `run`.
    """
    cell = request.cell
    aside = study.repeating(cell)
    aside.parent.mkdir(parents=True, exist_ok=True)
    precautions = replace(request.precautions, save_every=None)
    request = replace(request, path=str(aside.absolute()), precautions=precautions, save="none")
    request = replace(request, checkpoints=None, tracker=None, early_stopping=None)
    try:
        again = run(request, study, lease, on_event)
        recorded = record.read(study.path(cell))
        recorded.repeats.append(record.repeat_of(again, len(recorded.repeats) + 2))
        record.write(recorded, study.path(cell))
    finally:
        discard(aside.parent)
    return again


def _how_it_ended(last: Progress | None, code: int, log: Path) -> str:
    """A sentence on a job whose last event was `last`: itself with exit status `code`, or one of its ranks."""
    who, where = "The cell's process", log.name
    if last is not None and last.rank is not None and last.code is not None:
        who, code = f"Rank {last.rank} of the cell's processes", last.code
        if last.node:
            where = f"the output of machine {last.node}"
        if last.reason is not None:
            return f"{who} raised {last.reason.rstrip('.')}; its last words are in {where}."
    elif last is not None and last.reason is not None:
        return last.reason
    died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    hint = " (the kernel does so when memory runs out)" if code == -signal.SIGKILL else ""
    return f"{who} {died}{hint}; its last words are in {where}."


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
