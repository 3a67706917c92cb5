"""The time of operations that only seem to run: at the published rates of a card, or at those that were timed.

At published rates an operation takes at least its FLOPs at the card's rate for their format, and at least the bytes
that it reads and writes at the rate of the card's memory (Williams, Waterman and Patterson 2009). What real kernels
reach of that differs between products, attention and the rest, so these are added up apart, and
harness/sweep/estimates/rates.py makes seconds of them.

A compiled step computes neighbouring operations on single numbers in one kernel. What such a chain makes and itself
uses is not moved; what is used later is written once.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import Any

import torch

from harness.job.measure.flops import DECOMPOSITIONS, KERNELS
from harness.job.measure.kernels import Kernel, kernel_of, tensors_in
from harness.protocol import CardRates
from harness.record import Calibration

SIXTEEN = (torch.bfloat16, torch.float16)
CAUSAL = {"_varlen_attn", *(name for name in KERNELS if "efficient" not in name)}  # these skip half of the products
MASKED = {name for name in KERNELS if "efficient" in name}
ATTENTION = {name + backward for name in CAUSAL | MASKED for backward in ("", "_backward")}
# What a compiler fuses with its neighbours besides operations that torch tags as pointwise.
FUSED = {"_to_copy", "copy_", "clone", "cat", "fill_", "zero_", "sum", "mean", "amax", "native_dropout", "arange"}


class Roofline:
    """Adds up the work of operations by part of a step: ``step`` is forward and backward, ``optimizer`` the rest.

    rates: of a card, for seconds of products, attention and of what is moved, as if each reached its rate, and
    launches (null: launches alone). calibration: for the seconds of the device's own kernels, as ``timed`` (null:
    none). compiled: whether neighbouring operations on single numbers are one kernel.

    decomposing: seconds, by the calibration, of the decompositions that only the first step has, as it makes the
    optimizer's state. untimed: how many of them the calibration has no time of.
    """

    def __init__(self, rates: CardRates | None, calibration: Calibration | None = None, compiled: bool = False):
        self._rates, self._calibration, self._compiled = rates, calibration, compiled
        self._known: dict[Kernel, float] = {}  # seconds, of the calibration
        self._chain = _Chain()
        self.decomposing, self.untimed = 0.0, 0
        self._decompositions: list[Kernel] = []  # of the step that counts
        self.reset()

    def reset(self) -> None:
        """Count the work of another step from zero: what was decomposed until now is of the first."""
        for kernel in self._decompositions:
            self._decompose(kernel)
        self._decompositions.clear()
        self.work: dict[str, defaultdict[str, float]] = {name: defaultdict(float) for name in ("step", "optimizer")}
        self._part: defaultdict[str, float] = defaultdict(float)

    def add(self, operation: Any, arguments: Any, out: Any, flops: int) -> None:
        """Count an `operation` with the arguments `arguments` and the result `out`."""
        kernel = kernel_of(operation, arguments, out, flops)
        if kernel is None:
            return
        self._part["launches"] += 1
        if (decomposition := _decomposition(operation, arguments, out)) is not None:
            self._decompositions.append(decomposition)
        if self._calibration is not None:
            self._part["timed"] += self._calibrated(self._calibration, decomposition or kernel)
        if self._rates is not None:
            self._add_least(self._rates, operation, kernel, arguments, out)

    def add_uncounted(self, operation: Any, arguments: Any, out: Any) -> None:
        """Count an operation of a first step, of which decompositions alone count."""
        if (decomposition := _decomposition(operation, arguments, out)) is not None:
            self._decompose(decomposition)

    def _decompose(self, kernel: Kernel) -> None:
        calibration = self._calibration
        if calibration is None or not calibration.timed_alike(kernel.name, kernel.flops, kernel.moved):
            self.untimed += 1
        else:
            self.decomposing += self._calibrated(calibration, kernel)

    def _calibrated(self, calibration: Calibration, kernel: Kernel) -> float:
        if kernel not in self._known:
            self._known[kernel] = calibration.seconds(kernel.name, kernel.formats, kernel.flops, kernel.moved)
        return self._known[kernel]

    def _add_least(self, rates: CardRates, operation: Any, kernel: Kernel, arguments: Any, out: Any) -> None:
        moved = kernel.moved
        if self._compiled:
            fuses = torch.Tag.pointwise in operation.tags or kernel.name in FUSED
            moved = self._chain.moved(list(tensors_in(arguments)), list(tensors_in(out)), fuses, kernel.moved)
            if fuses and self._chain.length > 1:
                self._part["launches"] -= 1
        seconds = moved / rates.bandwidth
        if not kernel.flops:
            self._part["moved"] += seconds
            return
        first = next(tensor for tensor in tensors_in(arguments) if tensor.is_floating_point())
        rate = (first.dtype in SIXTEEN and rates.bf16) or rates.fp32
        if kernel.name in ATTENTION:
            masked = kernel.name.removesuffix("_backward") in MASKED
            self._part["attention"] += max(seconds, kernel.flops / (1 if masked else 2) / rate)
        elif kernel.flops / rate > seconds:
            self._part["products"] += kernel.flops / rate
        else:
            self._part["moved"] += seconds

    def lap(self, part: str) -> None:
        """End the part `part` of a step, as `harness.job.training.loop.PARTS` has them; parts of one name add up."""
        if self._compiled and self._rates is not None:
            self._part["moved"] += self._chain.end() / self._rates.bandwidth
        of = self.work["optimizer" if part == "optimizer" else "step"]
        for kind, amount in self._part.items():
            of[kind] += amount
        self._part.clear()


def _decomposition(operation: Any, arguments: Any, out: Any) -> Kernel | None:
    """The kernel of an `operation` that decomposes a matrix; None of all others."""
    formula = DECOMPOSITIONS.get(operation._overloadpacket)
    if formula is None:
        return None
    positional, named = arguments
    return kernel_of(operation, arguments, out, formula(*positional, **named))


class _Chain:
    """Neighbouring operations on single numbers, which are one kernel.

    length: of the present chain.
    """

    def __init__(self) -> None:
        self.length = 0
        self._inside: set[int] = set()  # storages that the present chain has read or made
        self._unwritten: dict[int, int] = {}  # bytes of storages that a chain made and nothing outside has used yet

    def moved(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor], fuses: bool, alone: int) -> int:
        """Bytes that an operation moves. alone: those of it outside of a chain; fuses: whether it may be in one."""
        if not fuses:
            self.length = 0
            self._inside.clear()
            return alone + sum(self._write(_key(tensor)) for tensor in inputs)
        self.length += 1
        total = 0
        for tensor in inputs:
            key = _key(tensor)
            if key not in self._inside:
                total += _size(tensor)
                total += self._write(key)
                self._inside.add(key)
        for tensor in outputs:
            key = _key(tensor)
            if key not in self._inside:
                weakref.finalize(tensor.untyped_storage(), self._forget, key)
            self._inside.add(key)
            self._unwritten[key] = _size(tensor)
        return total

    def end(self) -> int:
        """Bytes of what is kept of the chains until now and was not written yet."""
        self.length = 0
        self._inside.clear()
        total = sum(self._unwritten.values())
        self._unwritten.clear()
        return total

    def _write(self, key: int) -> int:
        return self._unwritten.pop(key, 0)

    def _forget(self, key: int) -> None:
        self._inside.discard(key)
        self._unwritten.pop(key, None)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: torch.Tensor) -> int:
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
