"""All that crosses the boundary between a sweep and a job: one request, then a stream of JobEvents.

A request is one JSON document on the job's standard input, an event one line on its standard output. Both are encoded
and decoded here alone. Paths are absolute, since a job may run in another folder.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from harness import plugin
from harness.record import (
    Calibration,
    Cell,
    Precautions,
    Record,
    SmallerBatches,
    Status,
    StopRule,
    TrackerName,
    decode_tagged,
    encode_tagged,
)
from harness.settings import DataSettings, EvalSettings

Report = Callable[[dict[str, Any]], None]  # takes the progress of a job: fields of Progress

BEGUN = b"+"  # what a server of jobs sends when it begins one; the exit status follows

# Requests


@dataclass(frozen=True)
class Rendezvous:
    """Where the `nodes` machines of one cell meet: `host` and `port` of the first (port 0: a free one).

    number: of this machine, from 0. seconds: time limit for all to join.
    """

    nodes: int
    number: int
    host: str
    port: int
    seconds: float


@dataclass(frozen=True)
class LocalPaths:
    """What this machine has and no record names, as what lies there is run: fields of harness.config.EvalConfig."""

    vllm_python: str | None = None
    include_path: str | None = None

    @classmethod
    def absolute(cls, vllm_python: str | None, include_path: str | None) -> LocalPaths:
        """Of paths as one types them."""
        return cls(*(path and str(Path(path).expanduser().absolute()) for path in (vllm_python, include_path)))


NO_PATHS = LocalPaths()


@dataclass(frozen=True)
class EarlyStopping:
    """The rule that may end a cell early.

    folder: in which the cells of its study note their losses for it. target: as of harness.plugin.Plugin.early_stop.
    """

    rule: StopRule
    folder: str
    target: str


LIBRARIES = "harness.job.run_cell"  # imports all that a cell needs, which takes seconds
READING = "harness.job.reachable"  # imports what data are read with


class Request:
    """What is asked of a job.

    target: the function that serves it, as ``module:function``; it takes the request and a function that sends events.
    A RunCell has none: harness/job/__main__.py runs it. prepare: what the server calls with it before it forks the job,
    so that later jobs find loaded what they share (None: nothing). libraries: the module that the server imports first,
    with the libraries of such jobs; those that may be refused soon name READING, and import LIBRARIES when they aren't.
    """

    target: ClassVar[str]
    libraries: ClassVar[str] = LIBRARIES
    prepare: ClassVar[str | None] = None


@dataclass(frozen=True)
class RunCell(Request):
    """Run `cell` and write its record to `path`, its items beside it.

    checkpoints: the cell's own folder of checkpoints. Training saves there, and resumes from there, if the precautions
        say how often. It is removed with the record, except for a failed cell, which may be retried.
    smaller: micro-batches that replace those that were asked for.
    save, tracker: as in harness.config.Config. Weights are saved of a tuned cell that ends as ok.
    extra: what the plug-in that runs the cell adds to it, as JSON values; null if none does (harness/cell_runner.py).
    warn: whether to warn if others use the devices.
    rendezvous: null on one machine. All others than the first train along, as the first one's request says.
    position, confirmation: as in the record. early_stopping: null if the cell is trained to its end.
    """

    libraries: ClassVar[str] = READING
    prepare: ClassVar[str | None] = "harness.job.services:prepare_cell"

    cell: Cell
    study: str
    path: str
    data_root: str | None = None
    checkpoints: str | None = None
    precautions: Precautions = field(default_factory=Precautions)
    smaller: SmallerBatches | None = None
    save: Literal["none", "adapter", "merged"] = "none"
    tracker: TrackerName | None = None
    extra: dict[str, Any] | None = None
    warn: bool = False
    rendezvous: Rendezvous | None = None
    position: int | None = None
    confirmation: bool = False
    local: LocalPaths = NO_PATHS
    early_stopping: EarlyStopping | None = None

    def record(self, status: Status, started: datetime) -> Record:
        """A record of the cell with what is known before it runs."""
        return Record(
            cell=self.cell,
            study=self.study,
            status=status,
            started=started.isoformat(timespec="seconds"),
            seconds=0.0,
            environment={},
            precautions=self.precautions,
            smaller_batches=self.smaller,
            stop=None if self.early_stopping is None else self.early_stopping.rule,
            save=self.save,
            tracker=self.tracker,
            position=self.position,
            confirmation=self.confirmation,
        )


@dataclass(frozen=True)
class CheckCells(Request):
    """Refuse cells that can't run here.

    extra: by id of the cells that plug-ins run, as of RunCell. What these would cost is answered.
    elsewhere: whether the cells run on other machines, which alone know what their devices can do.
    """

    target: ClassVar[str] = "harness.job.services:check"
    libraries: ClassVar[str] = READING
    prepare: ClassVar[str | None] = "harness.job.services:prepare_check"

    cells: list[Cell]
    data_root: str | None = None
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)
    warn: bool = False
    local: LocalPaths = NO_PATHS
    elsewhere: bool = False


@dataclass(frozen=True)
class SortCells(CheckCells):
    """Answer which of `cells` the method, the model or this machine refuses: id, reason and environment of each.

    Data that can't be read are refused: no cell is to be left out for them.
    """

    target: ClassVar[str] = "harness.job.services:sort"


@dataclass(frozen=True)
class PlannedCell:
    """architecture: the model's dimensions; null to read the model's own config."""

    cell: Cell
    architecture: dict[str, Any] | None = None


@dataclass(frozen=True)
class CardRates:
    """What a card computes and moves at most: FLOP/s in bf16 (null: it has no bf16) and fp32, bytes/s of its memory."""

    bf16: float | None
    fp32: float
    bandwidth: float


@dataclass(frozen=True)
class PlanCells(Request):
    """Predict what cells would take.

    budget: bytes of a card, which need not be here; null for all memory of this machine's device. beside: bytes of the
    budget that tensors don't get. tight: share of the budget that train.batch_size=auto may use. kernels: whose kernels
    compute, ``cpu`` or ``cuda``; null for CUDA's if there is a budget, or a GPU here. rates: of the card, for the work
    of a step; null if it is not asked for. calibrations: of that card; without rates, of any device, of which that of
    this machine's counts.
    """

    target: ClassVar[str] = "harness.job.services:plan"
    libraries: ClassVar[str] = "harness.job.predict.workers"

    cells: list[PlannedCell]
    data_root: str | None
    budget: int | None
    beside: int
    tight: float
    kernels: str | None
    rates: CardRates | None = None
    calibrations: list[Calibration] = field(default_factory=list)


@dataclass(frozen=True)
class CalibrateDevice(Request):
    """Time the kernels of `cells` on this machine's device. warn: whether to warn if others use it."""

    target: ClassVar[str] = "harness.job.services:calibrate"

    cells: list[PlannedCell]
    warn: bool = False


@dataclass(frozen=True)
class ExamineMachine(Request):
    """Describe this machine. models, data: the files of conf/model and conf/data by name, as typed there."""

    target: ClassVar[str] = "harness.job.services:examine"

    models: dict[str, dict[str, Any]]
    data: dict[str, dict[str, Any]]
    data_root: str | None = None
    warn: bool = False


@dataclass(frozen=True)
class CheckTasks(Request):
    """Refuse tasks that can't be loaded. data: those of the cells, whose test part may be a task."""

    target: ClassVar[str] = "harness.job.services:check_tasks"
    prepare: ClassVar[str | None] = "harness.job.services:prepare_tasks"

    settings: EvalSettings
    data: DataSettings
    data_root: str | None = None
    local: LocalPaths = NO_PATHS


@dataclass(frozen=True)
class Rescore(Request):
    """Score the recorded cell at `path` by `settings`, and add that to its record.

    cell: as a command line has it; null if it is known from its record alone, which the gate then has to admit.
    """

    target: ClassVar[str] = "harness.job.services:rescore"
    prepare: ClassVar[str | None] = "harness.job.services:prepare_scoring"

    path: str
    settings: EvalSettings
    data_root: str | None = None
    local: LocalPaths = NO_PATHS
    cell: Cell | None = None


# Events


@dataclass(frozen=True)
class CellProgress:
    """Where a running cell stands: its phase, in training the step with its figures, in scoring the requests answered.

    of: steps, or requests, in all. memory_bytes: of the CUDA device, else the process's resident set. seconds_left: of
    the phase.
    """

    phase: str | None = None
    step: int | None = None
    of: int | None = None
    answered: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Progress(CellProgress):
    """Where the job stands, and what only some jobs tell.

    rank, code: a rank that died, and its exit status; node: its machine; reason: what it raised. Without a rank, the
    node left, and the reason says so. other: what the request of a plug-in tells besides, as JSON values.
    """

    phase: str
    lr: float | None = None
    grad_norm: float | None = None
    rank: int | None = None
    code: int | None = None
    node: int | None = None
    reason: str | None = None
    other: dict[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """A part of what the request asked for, as plain JSON values."""

    value: dict[str, Any]


@dataclass(frozen=True)
class Warned:
    """A sentence for the user; the job goes on."""

    sentence: str


@dataclass(frozen=True)
class Noted:
    """A sentence for the user that is no warning, such as how a file is read or answers will be scored."""

    sentence: str


@dataclass(frozen=True)
class Refused:
    """Bad input, as one sentence; the job ends."""

    sentence: str


JobEvent = Progress | Result | Warned | Noted | Refused


def facts(progress: Progress) -> dict[str, Any]:
    """What a lease tells of a running cell: the fields that are known."""
    return {name: value for name, value in vars(progress).items() if value is not None}


def encode(message: Request | JobEvent) -> str:
    """One line of JSON."""
    return json.dumps(encode_tagged(message))


def decode_request(text: str | bytes) -> Request:
    return decode_tagged(request_kinds(), json.loads(text))


@functools.cache
def request_kinds() -> tuple[type[Request], ...]:
    """All classes of requests: those above, and those of plug-ins."""
    own: list[type[Request]] = [
        *(RunCell, CheckCells, SortCells, PlanCells, CalibrateDevice, ExamineMachine, CheckTasks, Rescore)
    ]
    added = [plugin.load(target) for part in plugin.installed() for target in part.requests]
    return (*own, *added)


def decode_event(line: str) -> JobEvent:
    return decode_tagged(get_args(JobEvent), json.loads(line))
