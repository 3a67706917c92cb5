"""What the checks use: cells and how to run them, child processes, the remaining time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import hydra

from harness.config import CONF, ROOT
from harness.config_folders import group_files
from harness.errors import UserError
from harness.protocol import Progress
from harness.record import Cell, Precautions, Record
from harness.sweep import app, fork_server, planner, runner
from harness.sweep.cells import from_config
from harness.sweep.estimates.card import Card, load
from harness.sweep.planner import Impossible, Planned
from harness.sweep.store import Study

# Core methods, the most important first; those that conf/method lacks are left out.
METHODS = (
    *("lora", "qlora", "full", "galore_rsvd", "dora", "base", "base_nf4", "dora_fast", "qdora", "galore_8bit"),
    *("qlora_paged", "lora_8bit", "adamw_8bit", "full_bf16", "full_kahan", "galore_bf16", "galore", "galore_layer"),
    *("galore_8bit_layer", "base_int8"),
)
UNTUNED = ("base", "base_nf4", "base_int8")
MORE = {  # further settings that a method requires
    "galore_layer": ["train.max_grad_norm=null"],
    "galore_8bit_layer": ["train.max_grad_norm=null", "model.dtype=bfloat16"],
    **{name: ["model.dtype=bfloat16"] for name in ("full_bf16", "full_kahan", "galore_bf16")},
}

SHORT = ["rank=16", "eval.tasks=[wordmath_short,facts_short]", "infer.new_tokens=5"]
LOAD = {  # by device: enough to keep it busy; on a CPU just enough to test this script
    "cuda": [
        *("data=wordmath", "train.batch_size=16", "train.max_steps=10", "train.validation_items=16"),
        *("eval.limit=16", "eval.batch_size=16", "infer.repeats=2"),
    ],
    "cpu": [
        *("data=wordmath_short", "++data.load.train=64", "++data.load.validation=8", "rank=8", "train.precision=fp32"),
        *("train.batch_size=2", "train.max_steps=4", "train.validation_items=4"),
        *("eval.limit=4", "infer.repeats=1", "infer.prompt_tokens=8", "infer.new_tokens=2"),
    ],
}
SAVERS = {  # settings of train that save memory or time
    "gradient_checkpointing": ["train.gradient_checkpointing=true"],
    "activation_offload": ["train.activation_offload=true"],
    "global_batch": ["train.batch_size=auto", "train.global_batch=64"],
    "compile": ["train.compile=true"],  # the last, as it takes longest
}
MODELS = ROOT / ".cache" / "gpu"  # where models with random weights are built
TRAINING_ALONE = ["eval.tasks=[]", "infer.repeats=0"]
CELL_SECONDS = 240.0  # time limit of a cell, and of any other process

Status = Literal["passed", "failed", "skipped"]


@dataclass
class Check:
    """The result of a check. detail: by how much, or why not; rows: its numbers, one dict per row of its table."""

    status: Status
    detail: str
    name: str = ""
    about: str = ""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Skip(Exception):
    """The check, or a row of it, can't run here; the message says why."""


class OutOfTime(Skip):
    """The time limit of the run is reached."""


class Rows:
    """The rows of a check's table, one of which may fail without the others.

    strict: whether a row that is refused (UserError) counts as a failure. rows: as Check has them, with "status" and
    "reason" for those that came to nothing. wrong: a sentence on each failure.
    """

    def __init__(self, strict: bool):
        self.strict = strict
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []

    @contextmanager
    def row(self, **columns: Any) -> Iterator[dict[str, Any]]:
        """A further row, to be filled inside the context; the first of `columns` names it. Exceptions end with it."""
        row, name = dict(columns), next(iter(columns.values()))
        self.rows.append(row)
        try:
            yield row
        except Skip as reason:
            row |= {"status": "not run", "reason": str(reason)}
        except UserError as reason:
            row |= {"status": "refused" if self.strict else "not run", "reason": str(reason)}
            self.wrong += [f"{name}: {reason}"] if self.strict else []
        except Exception as error:
            row |= {"status": "failed", "reason": in_words(error)}
            self.wrong.append(f"{name}: {row['reason']}")

    @property
    def skipped(self) -> list[str]:
        """A sentence on each row that was not run."""
        return [f"{next(iter(row.values()))}: {row['reason']}" for row in self.rows if row.get("status") == "not run"]

    def check(self, detail: str, good: bool = True) -> Check:
        """The check of these rows. Raises Skip if none was run, and none failed."""
        if self.rows and len(self.skipped) == len(self.rows):
            raise Skip("; ".join(dict.fromkeys(self.skipped)))
        return Check("passed" if good and not self.wrong else "failed", detail, rows=self.rows)


def in_words(error: BaseException) -> str:
    """The kind of an exception, and its message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class Bench:
    """Runs cells into the study's folder `out` and its subfolders.

    facts: of the machine (harness.studies.doctor). model: overrides that select the model. until: time.monotonic() when
        the run must end. gpus: of this machine, as CUDA_VISIBLE_DEVICES names them; most checks use the first alone.
    """

    def __init__(self, out: Path, facts: dict[str, Any], model: list[str], until: float, gpus: Sequence[str] = ()):
        self.out, self.facts, self.model, self.until, self.gpus = out, facts, model, until, gpus
        self.device: str = facts["job"]["compute"]["device"]["type"]
        self.load: Sequence[str] = LOAD[self.device]
        self.methods = [name for name in METHODS if (CONF / "method" / f"{name}.yaml").is_file()]
        app.register()

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def bf16(self) -> bool:
        """Whether cells compute in bf16 on this GPU; those before Ampere do not."""
        return self.on_cuda and self.facts["job"]["compute"]["formats"]["bf16"] == "yes"

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return self.until - time.monotonic()

    def needs_cuda(self) -> None:
        if not self.on_cuda:
            raise Skip("no CUDA device")

    def seconds(self) -> float:
        """Seconds that a process started now may take. Raises OutOfTime if less than 10 are left."""
        if self.left < 10:
            raise OutOfTime("the time limit was reached")
        return min(CELL_SECONDS, self.left)

    # Cells

    def _study(self, folder: str) -> Study:
        return Study(self.out.parent, f"{self.out.name}/{folder}" if folder else self.out.name)

    def config(self, *overrides: str, name: str = "config") -> Any:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(name, [*self.model, *overrides])

    def cell(self, method: str, *overrides: str) -> Cell:
        asked = [f"method={method}", *SHORT, *self.load, *MORE.get(method, []), *overrides]
        return from_config(self.config(*asked))

    def record(self, cell: Cell, folder: str = "", anew: bool = False, **keywords: Any) -> Record:
        """The record of `cell` in a subfolder of `out`: an existing one that is ok, else that of a run now."""
        study = self._study(folder)
        record = study.recorded(cell)
        if not anew and record is not None and record.status == "ok":
            return record
        asked = keywords.pop("precautions", {}) | {"timeout": self.seconds()}
        study.folder.mkdir(parents=True, exist_ok=True)
        with study.lease(cell) as lease:
            events: Callable[[Progress], None] = keywords.pop("on_event", lambda event: None)
            request = runner.request_for(cell, study, None, precautions=Precautions(**asked), **keywords)
            record = runner.run(request, study, lease, events)
        if record.status == "failed" and self.left <= 0:
            study.remove(cell.name)
            raise OutOfTime("the time limit was reached")
        return record

    def kill_at(self, cell: Cell, folder: str, step: int, **keywords: Any) -> Record:
        """Run `cell` and kill its process after `step` steps. Returns the record of that run."""
        study = self._study(folder)

        def on_event(event: Progress) -> None:
            if event.step == step:
                for pid in study.running()[cell.name]["processes"]:
                    if int(pid) != os.getpid():
                        os.kill(int(pid), signal.SIGKILL)

        return self.record(cell, folder, anew=True, on_event=on_event, **keywords)

    @cached_property
    def cells(self) -> dict[str, Cell | str]:
        """By method its cell, or why it can't run on this device or with this model."""
        cells: dict[str, Cell | str] = {}
        for method in self.methods:
            try:
                cell = self.cell(method)
                cells[method] = self._refusal(cell) or cell
            except UserError as reason:
                cells[method] = str(reason)
        return cells

    def _refusal(self, cell: Cell) -> str | None:
        """Why a job on this GPU would refuse `cell`: it asks for arithmetic in 16 bits, which the GPU has not."""
        setting = cell.settings.in_sixteen_bits
        return f"{setting} requires bf16, which this GPU lacks" if setting and self.on_cuda and not self.bf16 else None

    @cached_property
    def architectures(self) -> dict[str, dict[str, Any]]:
        """The dimensions of the model by its name, where its file has them: its own config need not be there."""
        settings = self.config().model
        return {settings.name: dict(settings.architecture)} if settings.get("architecture") else {}

    @cached_property
    def card(self) -> Card | None:
        """What conf/device has of this GPU; None if it is of no card there."""
        name = self.facts["job"]["compute"]["device"].get("name")
        return next((card for card in map(load, sorted(group_files("device"))) if name in card.devices), None)

    @cached_property
    def planned(self) -> dict[str, Planned | Impossible]:
        """By method, the prediction for its cell."""
        self._plan = planner.make(list(self.cells.items()), self.architectures, None, None, remedies=False)
        return {point.name: point for point in self._plan.points}

    def obstacle(self, method: str) -> str | None:
        """Why the cell of `method` can't run on this device; None if it can."""
        point = self.planned[method]
        if isinstance(point, Impossible):
            return point.reason
        return None if self._plan.fits(point) else planner.refusal(self._plan, point)

    def of_model(self, model: list[str], methods: Sequence[str]) -> Bench:
        """The same with another model, for these methods."""
        other = Bench(self.out, self.facts, model, self.until, self.gpus)
        other.methods = [name for name in methods if name in self.methods]
        return other

    def build_random(self, folder: Path, needed: float) -> None:
        """Write a model of the shape of this bench's, with random weights, to `folder`, if it is not there.

        needed: bytes that it takes. Raises UserError if the disk has no room for it.
        """
        if folder.exists():
            return
        settings = self.config().model
        room(folder, needed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f"{folder.name}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(left)
        self.beside("random", architecture=dict(settings.architecture), dtype=settings.dtype, folder=str(folder))

    @contextmanager
    def seeing(self, gpus: Sequence[str]) -> Iterator[None]:
        """A context in which started processes see these GPUs; on a machine without any, none."""
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        try:
            yield
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            os.environ.update({} if before is None else {"CUDA_VISIBLE_DEVICES": before})

    # Other processes

    def beside(self, what: str, **request: Any) -> dict[str, Any]:
        """The answer of `benchmarks/gpu/beside.py` to `request`, from a process of its own, with a time limit."""
        log = self.out / f"{what}.log"
        command = [sys.executable, "-m", "benchmarks.gpu.beside", what]
        with open(log, "ab") as stderr:
            out = self.command(command, stderr, input=json.dumps(request, default=asdict).encode())
        try:
            return json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            raise RuntimeError(f"{what} gave no result; see {log.name}.") from None

    def command(self, command: list[str], stderr: Any, input: bytes = b"") -> bytes:
        """The output of `command`, run in the checkout; at the time limit all its processes are ended."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=fork_server.ATTENTION | os.environ | {"PYTHONPATH": path},  # as the cells it is compared with
            start_new_session=True,
        )
        limit = self.seconds()
        try:
            return process.communicate(input, timeout=limit)[0]
        except subprocess.TimeoutExpired:
            raise (
                OutOfTime("the time limit was reached")
                if self.left <= 0
                else RuntimeError(f"The process exceeded its time limit of {limit:.0f} seconds.")
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def room(folder: Path, needed: float) -> None:
    """Raise UserError unless `needed` bytes are free where `folder` lies, or would lie."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(f"{folder} needs {needed / 2**30:.1f} GiB of free disk, and {free / 2**30:.1f} GiB are free.")
