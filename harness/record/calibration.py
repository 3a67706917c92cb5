"""What `harness calibrate` measures of a device, kept beside the records: RESULTS/calibration/DEVICE.jsonl.

The first line says of which device, the others have a timed kernel each.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.grouping import grouped
from harness.record.codec import Misfit, decode
from harness.record.files import replacing

FAR = math.log(8)  # the rate of a kernel tells nothing of one that is so many times larger or smaller
FOLDER = "calibration"  # below the results folder


@dataclass(frozen=True)
class TimedKernel:
    """An operation as a step called it, and how long the device took for it.

    name: of the operation; formats: of the first tensor with numbers and of the result, and which tensors are
    contiguous (c) or strided (s). flops: 0 if it is no product. moved: bytes read and written. seconds: the least of
    several steps, a mean over the calls with this size in a step.
    """

    name: str
    formats: str
    flops: int
    moved: int
    seconds: float

    @property
    def work(self) -> int:
        """FLOPs, or bytes."""
        return self.flops or self.moved


@dataclass(frozen=True)
class Calibration:
    """The timed kernels of a device.

    device: its type and name; of a CPU also the number of threads. created: when. torch: its version. launch: seconds
    in which the host begins an operation. ahead: whether the host begins operations while others run, as with CUDA.
    """

    device: list[Any]
    created: str
    torch: str
    launch: float
    ahead: bool
    kernels: list[TimedKernel] = field(default_factory=list)

    def seconds(self, name: str, formats: str, flops: int, moved: int) -> float:
        """Of a kernel that may not have been timed: its work at the rate of the nearest ones.

        Nearest are those of the same operation and formats, else of the same operation, if one is of a like size, else
        all that have FLOPs, or none, as this one. Between two sizes the rate is interpolated.
        """
        work = flops or moved
        if not work:
            return 0.0
        near = self._near(name, formats, flops, moved)
        if near[0][0] < 1e-9 or len(near) == 1:
            return near[0][1].seconds * work / near[0][1].work
        weights = [1 / distance for distance, _ in near]
        rates = [math.log(kernel.work / kernel.seconds) for _, kernel in near]
        mean = sum(w * rate for w, rate in zip(weights, rates, strict=True)) / sum(weights)
        return work / math.exp(mean)

    def total(self, device: float, launches: float, optimizer: float) -> float:
        """Seconds of steps whose kernels take `device` seconds, and of which the host begins `launches`.

        optimizer: those of the optimizer, which on CUDA has few that take many weights at once.
        """
        if self.ahead:
            return max(device, self.launch * launches)
        return device + self.launch * (launches + optimizer)

    def united(self, earlier: Calibration | None) -> Calibration:
        """This one, and what only an `earlier` one of the same device and torch has timed."""
        if earlier is None or (earlier.device, earlier.torch) != (self.device, self.torch):
            return self
        keys = {_key(kernel) for kernel in self.kernels}
        return replace(self, kernels=[*self.kernels, *(k for k in earlier.kernels if _key(k) not in keys)])

    def timed_alike(self, name: str, flops: int, moved: int) -> bool:
        """Whether the operation `name` was timed at a like size."""
        return any(_distance(kernel, flops, moved) <= FAR for kernel in self._groups.get(name, []))

    @cached_property
    def _groups(self) -> dict[Any, list[_Comparable]]:
        return grouped(
            (key, _Comparable(**asdict(kernel)))
            for kernel in self.kernels
            for key in ((kernel.name, kernel.formats), kernel.name, kernel.flops > 0)
        )

    def _near(self, name: str, formats: str, flops: int, moved: int) -> list[tuple[float, _Comparable]]:
        """The two kernels whose rates tell that of another one, with their distances from it."""
        near: list[tuple[float, _Comparable]] = []
        for key in ((name, formats), name, flops > 0):
            alike = [kernel for kernel in self._groups.get(key, []) if (kernel.flops > 0) == (flops > 0)]
            near = sorted((_distance(kernel, flops, moved), kernel) for kernel in alike)[:2]
            if near and near[0][0] <= FAR:
                return near
        return near or [(1.0, kernel) for group in self._groups.values() for kernel in group][:1]


class _Comparable(TimedKernel):
    """Ordered by its work, so that ties of distances have an order."""

    def __lt__(self, other: TimedKernel) -> bool:
        return self.work < other.work


def _key(kernel: TimedKernel) -> tuple[Any, ...]:
    return kernel.name, kernel.formats, kernel.flops, kernel.moved


def _distance(kernel: TimedKernel, flops: int, moved: int) -> float:
    """How many times larger or smaller, as a logarithm; of products in FLOPs and in bytes."""
    sizes = [(kernel.moved, moved), (kernel.flops, flops)] if flops else [(kernel.moved, moved)]
    return sum(abs(math.log(max(a, 1) / max(b, 1))) for a, b in sizes)


def device_of(environment: dict[str, Any]) -> list[Any]:
    """What of a record's environment tells devices apart: type and name, of a CPU also the number of threads."""
    device, cpu = environment.get("device") or {}, environment.get("cpu") or {}
    where = [cpu.get("name"), environment.get("threads")] if device.get("type") == "cpu" else [device.get("name")]
    return [device.get("type"), *where]


def calibration_path(results: Path, device: Sequence[Any]) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, device)).lower()).strip("-")
    return results / FOLDER / f"{words}.jsonl"


def write_calibration(calibration: Calibration, results: Path) -> Path:
    """Write `calibration` below `results`, all or nothing; returns its file."""
    path = calibration_path(results, calibration.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {key: value for key, value in asdict(calibration).items() if key != "kernels"}
    lines = [head, *(asdict(kernel) for kernel in calibration.kernels)]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def calibrations(results: Path) -> list[Calibration]:
    """All below `results`. UserError for a file that is none, or that has the name of another device."""
    folder = results / FOLDER
    return [_read(path, results) for path in sorted(folder.glob("*.jsonl"))] if folder.is_dir() else []


def _read(path: Path, results: Path) -> Calibration:
    again = "remove it, and run `harness calibrate` again"
    try:
        head, *kernels = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        calibration = decode(Calibration, head | {"kernels": kernels})
        sound = bool(kernels) and all(kernel.seconds > 0 and kernel.work > 0 for kernel in calibration.kernels)
        sound = sound and calibration.launch >= 0
    except (ValueError, TypeError, AttributeError, Misfit, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path} is no calibration; {again}.")
    if path != calibration_path(results, calibration.device):
        of = " ".join(map(str, calibration.device[1:]))
        raise UserError(f"{path} is a calibration of another device, {of}; {again}.")
    return calibration
