"""Checkpoints: all that training needs to go on in another process as if nothing had been.

    FOLDER/step-50/parameters.pt   the trainable weights
                   state.pt        state of optimizer, schedule and random numbers, and what was measured
                   about.json               whose it is, and the hashes of the other two

One is written under another name and renamed when it is whole, and the one before removed after that. It holds tensors
and plain values alone (and GaLore's and APOLLO's projectors), and nothing else is read from it: no code comes in by a
file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import sys
from pathlib import Path
from pickle import PickleError
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from harness import env, record
from harness.job.measure.device import describe
from harness.job.measure.phases import Meter
from harness.job.methods.galore import PROJECTORS
from harness.record import Phase

FORMAT = 2  # of what is written here
PARAMETERS, STATE, ABOUT = "parameters.pt", "state.pt", "about.json"
STEP = "step-"


class _Unusable(Exception):
    """Why a checkpoint is not gone on from, as the end of a sentence."""


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one cell in `folder`, which no other process uses meanwhile.

    every: steps from one to the next. of: what must be the same where one is gone on from, by name (the cell, versions,
    device), as JSON has it. meter: its open window is counted on, too.
    """

    folder: Path
    every: int
    of: dict[str, Any]
    meter: Meter

    def save(
        self, step: int, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, measured: dict[str, Any]
    ) -> None:
        """Leave a checkpoint of `step` steps, and only that; `measured` is plain values.

        Where that can't be, say so and leave the one before: training is worth more than its checkpoint.
        """
        with self.meter.aside():
            parameters = {name: p.detach() for name, p in _trainable(model)}
            state = {
                "optimizer": _optimizer_state(optimizer),
                "schedule": schedule.state_dict(),
                "random": _random_state(),
                "measured": measured,
                "phase": dataclasses.asdict(self.meter.so_far()),
            }
            temporary = self.folder / f".{STEP}{step}.tmp"
            try:
                self._write(temporary, parameters, state)
                made = temporary.rename(_cleared(self.folder / f"{STEP}{step}"))
                _sync(self.folder)
            except (OSError, RuntimeError, ValueError, PickleError) as error:
                _cleared(temporary)
                _say(f"No checkpoint could be made of step {step} ({_first_line(error)}); training goes on without.")
                return
            for other in self._found():
                if other != made:
                    _cleared(other)

    def _write(self, folder: Path, parameters: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Make `folder` and write a checkpoint there, down to the disk; ValueError if it could not be read back."""
        _cleared(folder).mkdir(parents=True)
        torch.save(parameters, folder / PARAMETERS)
        torch.save(state, folder / STATE)
        with torch.serialization.safe_globals(_projectors()):
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(folder / STATE)
        if unknown:
            raise ValueError(f"the optimizer keeps {', '.join(sorted(unknown))}, which can't be read back safely")
        about = {"format": FORMAT, "of": self.of, "sha256": _hashes(folder)}
        (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            _sync(path)

    def restore(self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any] | None:
        """Take all up as the last checkpoint left it, and return what had been measured by then.

        None if there is none that can be gone on from: nothing is changed then, and why is said. One that a killed
        process had not written to its end is removed.
        """
        with self.meter.aside():
            for torn in self.folder.glob(f".{STEP}*.tmp"):
                _cleared(torn)
            for folder in self._found():
                try:
                    state = self._read(folder)
                    _load_parameters(folder / PARAMETERS, dict(_trainable(model)))
                except _Unusable as why:
                    _say(f"The checkpoint {folder.name} is not gone on from: {why}.")
                    continue
                _load_optimizer(optimizer, state["optimizer"])
                schedule.load_state_dict(state["schedule"])
                self.meter.go_on_from(record.decode(Phase, state["phase"]))
                _load_random(state["random"])
                _say(f"Training goes on from the checkpoint {folder.name}.")
                return state["measured"]
        return None

    def _found(self) -> list[Path]:
        """Checkpoints there are, the last step first."""
        found = [p for p in self.folder.glob(f"{STEP}*") if p.name.removeprefix(STEP).isdecimal()]
        return sorted(found, key=lambda path: -int(path.name.removeprefix(STEP)))

    def _read(self, folder: Path) -> dict[str, Any]:
        """What `folder` holds beside parameters, after all of it was checked; raises _Unusable."""
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise _Unusable("it is of another version of the harness")
            was = about["of"]
            other = [name for name in self.of.keys() | was.keys() if self.of.get(name) != was.get(name)]
            if other:
                raise _Unusable(f"not the same are {', '.join(sorted(other))}")
            if about["sha256"] != _hashes(folder):
                raise _Unusable("it is torn")
            # Each tensor comes back to the device it was on, and as the view that it was.
            with torch.serialization.safe_globals(_projectors()):
                return torch.load(folder / STATE, weights_only=True)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, PickleError) as error:
            raise _Unusable(f"it can't be read ({_first_line(error)})") from None


def origin(device: torch.device) -> dict[str, Any]:
    """The machine and the code that a checkpoint is of, by name as JSON has it: those of the first device, which saves.

    device: that trains here.
    """
    machine = [env.describe() | describe(device)]
    broadcast_object_list(machine)
    return {name: machine[0][name] for name in ("versions", "cpu", "device", "threads")} | {"harness": code()}


def code() -> str:
    """A hash of the code of jobs, committed or not: other code may train differently."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _projectors() -> list[type]:
    """What low-rank gradient optimizers keep beside tensors; APOLLO's only where its package, an extra, is in use."""
    apollo = sys.modules.get("apollo_torch.random_projector")
    return [*PROJECTORS, *([apollo.GradientProjector] if apollo else [])]


def _cleared(folder: Path) -> Path:
    """`folder`, where there is nothing any more."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@torch.no_grad()
def _load_parameters(path: Path, parameters: dict[str, nn.Parameter]) -> None:
    """Copy the file's tensors into `parameters`, all or, if they are others, none and raise _Unusable."""
    saved = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    if {name: p.shape for name, p in saved.items()} != {name: p.shape for name, p in parameters.items()}:
        raise _Unusable("its weights are others")
    for name, p in parameters.items():
        p.copy_(saved[name])


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """State by parameter, or by a name as some optimizers have it, and settings by group, as the optimizer has them.

    Not its state_dict, which when it is loaded casts all to the parameters' dtype: 8-bit and fp32 states are to come
    back as they were.
    """
    groups = optimizer.param_groups
    return {
        "state": [optimizer.state.get(p, {}) for group in groups for p in group["params"]],
        "named": {key: value for key, value in optimizer.state.items() if isinstance(key, str)},
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in groups],
    }


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p, state in zip(parameters, saved["state"], strict=True):
        optimizer.state[p] = state
    optimizer.state.update(saved["named"])


def _random_state() -> dict[str, Any]:
    """Of every generator that anything draws from: torch's, those of CUDA devices, python's and numpy's."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [state.cpu() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
    }


def _load_random(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
    random.setstate(saved["python"])
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for name in (PARAMETERS, STATE):
        with open(folder / name, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)  # the cell's log
