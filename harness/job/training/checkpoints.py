"""Checkpoints: all that training needs to resume in another process with the same results.

    FOLDER/step-50/parameters.pt   the trainable weights
                   state.pt        state of optimizer, schedule and random numbers, and what was measured
                   about.json      the cell and machine that it belongs to, and the hashes of the other two

A checkpoint is written under another name, and renamed when it is complete; then the one before is removed. It holds
tensors and plain values (and GaLore's and APOLLO's projectors). Nothing else is read from it, so a file can't bring in
code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from pickle import PickleError
from typing import Any, ClassVar, Self

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from harness import env, record
from harness.errors import first_line
from harness.job.measure.device import describe
from harness.job.measure.phases import Meter
from harness.job.methods.galore import PROJECTORS
from harness.protocol import RunCell
from harness.record import Phase

PARAMETERS, STATE, ABOUT = "parameters.pt", "state.pt", "about.json"
STEP = "step-"
JOB = Path(__file__).parents[1]
OF_ONE_MACHINE = ("id", "memory_bytes", "driver")  # of a device, by which nothing is computed
FAILURES = (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, PickleError)  # of reading a file


class Unusable(Exception):
    """Why training can't resume from a checkpoint, as the end of a sentence."""


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one cell in `folder`, which no other process uses meanwhile.

    every: steps from one to the next. of: what must be the same to resume, by name (the cell, versions, device), as
    JSON has it. meter: its open window resumes too.
    """

    by_all_ranks: ClassVar[bool] = False  # or by the first alone
    form: ClassVar[int] = 2  # of the files

    folder: Path
    every: int
    of: dict[str, Any]
    meter: Meter

    @classmethod
    def asked_for(cls, request: RunCell, of: dict[str, Any], meter: Meter, device: torch.device) -> Self | None:
        """Those that `request` asks for, if it does. of: as above, but for machine and code. device: that trains."""
        folder, every = request.checkpoints, request.precautions.save_every
        if folder is None or every is None:
            return None
        return cls(Path(folder), every, of | origin(device), meter)

    def due(self, step: int, total: int) -> bool:
        """Whether one is saved after `step` of `total` steps: at their interval, and after the last one."""
        return step == total or step % self.every == 0

    def save(
        self, step: int, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, measured: dict[str, Any]
    ) -> None:
        """Save a checkpoint of `step` steps and remove older ones; `measured` is plain values.

        If that fails, the log says so, the older one stays, and training continues.
        """
        with self.meter.aside():
            parameters = {name: p.detach() for name, p in trainable(model)}
            temporary = self.folder / f".{STEP}{step}.tmp"
            try:
                self._write(temporary, parameters, self._state(optimizer, schedule, measured))
                self._finish(temporary, step)
            except (OSError, RuntimeError, ValueError, PickleError) as error:
                cleared(temporary)
                say(f"The checkpoint of step {step} was not saved ({first_line(error)}); training continues.")

    def _state(self, optimizer: Optimizer, schedule: LRScheduler, measured: dict[str, Any]) -> dict[str, Any]:
        """All but the weights."""
        return {
            "optimizer": optimizer_state(optimizer),
            "schedule": schedule.state_dict(),
            "random": random_state(),
            "measured": measured,
            "phase": dataclasses.asdict(self.meter.so_far()),
        }

    def _write(self, folder: Path, parameters: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint to the new `folder`. Raises ValueError if it could not be read back."""
        cleared(folder).mkdir(parents=True)
        torch.save(parameters, folder / PARAMETERS)
        torch.save(state, folder / STATE)
        check_readable(folder / STATE)

    def _finish(self, folder: Path, step: int) -> None:
        """Complete the checkpoint that was written to `folder`, synced to disk; older ones are removed."""
        about = {"format": self.form, "of": self.of, "sha256": hashes(folder)}
        (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            record.sync(path)
        complete = folder.rename(cleared(self.folder / f"{STEP}{step}"))
        record.sync(self.folder)
        for other in self._found():
            if other != complete:
                cleared(other)

    def restore(self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any] | None:
        """Restore the last checkpoint, and return what was measured by then.

        Returns None, and changes nothing, if there is no usable one; the log says why. Unfinished checkpoints of killed
        processes are removed.
        """
        with self.meter.aside():
            self._clear_unfinished()
            for folder in self._found():
                try:
                    state = self._read(folder)
                    _load_parameters(folder / PARAMETERS, dict(trainable(model)))
                except Unusable as why:
                    say(f"The checkpoint {folder.name} is not used: {why}.")
                    continue
                load_optimizer(optimizer, state["optimizer"])
                return self._resume(folder.name, state, schedule)
        return None

    def _resume(self, name: str, state: dict[str, Any], schedule: LRScheduler) -> dict[str, Any]:
        """Restore all but weights and optimizer from `state`, of the checkpoint `name`; returns what was measured."""
        schedule.load_state_dict(state["schedule"])
        self.meter.go_on_from(record.decode(Phase, state["phase"]))
        load_random(state["random"])
        say(f"Resuming from the checkpoint {name}.")
        return state["measured"]

    def _clear_unfinished(self) -> None:
        for torn in self.folder.glob(f".{STEP}*.tmp"):
            cleared(torn)

    def _found(self) -> list[Path]:
        """The checkpoints in the folder, the last step first."""
        found = [p for p in self.folder.glob(f"{STEP}*") if p.name.removeprefix(STEP).isdecimal()]
        return sorted(found, key=lambda path: -int(path.name.removeprefix(STEP)))

    def _read(self, folder: Path) -> dict[str, Any]:
        """The state in `folder`, after all files were checked. Raises Unusable."""
        try:
            if self._hashes_of(folder) != {name: record.sha256(folder / name) for name in (PARAMETERS, STATE)}:
                raise Unusable("its files do not match their hashes")
            # Each tensor returns to its device, and as the view that it was.
            with torch.serialization.safe_globals(_projectors()):
                return torch.load(folder / STATE, weights_only=True)
        except FAILURES as error:
            raise Unusable(f"it can't be read ({first_line(error)})") from None

    def _hashes_of(self, folder: Path) -> dict[str, str]:
        """What the files in `folder` are to hash to. Raises Unusable if they are of another cell, machine or format."""
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != self.form:
            raise Unusable("another version of the harness wrote it")
        was = about["of"]
        if other := [name for name in self.of.keys() | was.keys() if self.of.get(name) != was.get(name)]:
            raise Unusable(f"it differs in {', '.join(sorted(other))}")
        return about["sha256"]


def check_readable(path: Path) -> None:
    """Raise ValueError if the file `path`, which torch has saved, could not be read back without running code."""
    with torch.serialization.safe_globals(_projectors()):
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unknown:
        raise ValueError(f"the optimizer keeps {', '.join(sorted(unknown))}, which can't be read back safely")


def origin(device: torch.device) -> dict[str, Any]:
    """The machine and the code that a checkpoint is of, by name as JSON has it: those of the first device, which saves.

    device: that trains here. Another GPU of its kind may go on, on another machine too: two of a kind
    differ in the bytes of their memory, and at times in their driver.
    """
    here, trained_on = env.describe(), describe(device)
    kind = {name: value for name, value in trained_on["device"].items() if name not in OF_ONE_MACHINE}
    machine = [
        {"versions": here["versions"], "cpu": here["cpu"]["name"], "device": kind, "threads": trained_on["threads"]}
    ]
    broadcast_object_list(machine)
    return machine[0] | {"harness": code()}


def code(folder: Path = JOB) -> str:
    """A hash of the code of jobs and the YAML beside it, committed or not: others may train differently."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _projectors() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Classes that low-rank optimizers keep in their state; APOLLO's only if its package, an extra, is loaded."""
    apollo = sys.modules.get("apollo_torch.random_projector")
    return [*PROJECTORS, *([apollo.GradientProjector] if apollo else [])]


def cleared(folder: Path) -> Path:
    """`folder`, removed if it existed."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@torch.no_grad()
def _load_parameters(path: Path, parameters: dict[str, nn.Parameter]) -> None:
    """Copy the file's tensors into `parameters`. Raises Unusable, and copies none, if names or shapes differ."""
    saved = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    if {name: p.shape for name, p in saved.items()} != {name: p.shape for name, p in parameters.items()}:
        raise Unusable("its weights have other names or shapes")
    for name, p in parameters.items():
        p.copy_(saved[name])


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter (some optimizers have state by name too), and its settings by group.

    Its state_dict is not used, because loading that casts states to the parameters' dtype; 8-bit and fp32 states must
    return as they were.
    """
    groups = optimizer.param_groups
    return {
        "state": [optimizer.state.get(p, {}) for group in groups for p in group["params"]],
        "named": {key: value for key, value in optimizer.state.items() if isinstance(key, str)},
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in groups],
    }


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p, state in zip(parameters, saved["state"], strict=True):
        optimizer.state[p] = state
    optimizer.state.update(saved["named"])


def random_state() -> dict[str, Any]:
    """The states of all random number generators: torch's, that of this process's CUDA device, python's and numpy's.

    Other GPUs of the machine are other cells', and may be more or fewer when the cell goes on.
    """
    numpy = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state().cpu() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": numpy | {"state": numpy["state"] | {"key": torch.from_numpy(numpy["state"]["key"].astype(np.int64))}},
    }


def load_random(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"])
    random.setstate(saved["python"])
    numpy = saved["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].numpy().astype(np.uint32)}})


def hashes(folder: Path) -> dict[str, str]:
    """Hashes of all files in `folder` but that which names them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ABOUT)
    return {str(path.relative_to(folder)): record.sha256(path) for path in paths}


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr)  # the cell's log
