"""Extrapolates the figures of small models, for each window of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from harness.job.measure.live_memory import LiveBytes
from harness.job.predict.caching_allocator import EXPANDABLE
from harness.record import Probe

SINGLE = 0.9  # of the largest tensor, from which on it is what has found no place


@dataclass(frozen=True)
class Line:
    """Figures of a probe that are linear in depth and batch: peaks by window and kind, and others by name.

    Of the others ``unused`` is what CUDA's allocator reserves beside the peak, and ``holes`` the same if it grew by the
    byte: only that is linear, as it grows by EXPANDABLE's steps. ``least`` is what it must have beside the peak: where
    no memory is left, it gives back what is free before it takes more. ``single`` is the largest tensor. ``uneven`` is
    1 if what is unused was extrapolated though holes do not grow evenly: see `_unused`.
    """

    windows: dict[str, dict[str, float]]
    others: dict[str, float]

    def through(self, other: Line, x0: float, x1: float, x: float) -> Line:
        """The point at `x` of the line through self at `x0` and `other` at `x1`."""

        def at(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
            return {name: a[name] + (b[name] - a[name]) * (x - x0) / (x1 - x0) for name in a}

        windows = {name: at(kinds, other.windows[name]) for name, kinds in self.windows.items()}
        others = at(self.others, other.others)
        if "unused" in others:
            others |= _unused(self.others, other.others, (x - x1) / (x1 - x0))
        return Line(windows, others)

    def lacks_backward(self, two: Line) -> bool:
        """Whether a single layer, of which this is, computes less in its backward pass than the last of `two` does.

        So it is where attention and MLP read the same hidden states and attention alone is adapted: the MLP of a first
        layer, whose input is frozen, needs no gradient.
        """
        one, other = (
            {name: sum(line.windows.get(name, {}).values()) for name in ("head", "last layer backward")}
            for line in (self, two)
        )
        return other["last layer backward"] - one["last layer backward"] > 1.01 * (other["head"] - one["head"])

    @property
    def peak(self) -> dict[str, float]:
        """Bytes by kind in the highest window."""
        return max(self.windows.values(), key=lambda kinds: sum(kinds.values()))

    @property
    def uneven(self) -> bool:
        """Whether another amount than `reserved` may be, as it was extrapolated and does not grow evenly."""
        return bool(self.others.get("uneven"))

    @property
    def reserved(self) -> float | None:
        """Bytes that CUDA's allocator reserves: the peak, and what it has beside it; None where it is not predicted."""
        return self.live + max(0.0, self.others["unused"]) if "unused" in self.others else None

    @property
    def live(self) -> float:
        """Bytes of live tensors at the peak."""
        return sum(self.peak.values())

    @property
    def taken(self) -> float:
        """Bytes that must be free: the peak of live tensors, and what the allocator must have beside it."""
        return self.live + max(0.0, self.others.get("least", 0.0))


def _unused(one: dict[str, float], two: dict[str, float], further: float) -> dict[str, float]:
    """What is unused ``further`` steps after `two`, each as large as that from `one` to `two`.

    Holes grow as evenly as layers and sequences are alike. Where they grow by about the largest tensor (such as the
    embedding's gradient) or more, or not by what is unused, but for a step of the allocator, a single tensor has found
    no place: that is not repeated.
    """
    growth = two["holes"] - one["holes"]
    even = abs(two["unused"] - one["unused"] - growth) <= sum(EXPANDABLE)
    if not even or not 0 <= growth < SINGLE * two["single"]:
        most = max(one["unused"], two["unused"])
        return {"unused": most, "holes": most, "uneven": 1.0}
    return {name: two[name] + growth * further for name in ("unused", "holes")} | {"uneven": 0.0}


def count_buckets(figures: Probe, size: int, live: LiveBytes, accumulated: bool) -> None:
    """Count gradients as DDP holds them: `size` bytes of all-reduce buckets at all times, and beside them, before the
    last micro-batch, the accumulated gradients.

    Buckets have the weights' dtype, while one device has fp32 gradients of 16-bit weights with masters.
    """
    share = size / figures.gradients
    figures.resident.gradients = figures.gradients = size
    for name, peak in live.windows.items():
        if peak.kinds:
            beside = round(share * peak.kinds["gradients"]) if accumulated and name != "optimizer" else 0
            peak.kinds["gradients"] = size + beside


def mark_layers(layers: nn.ModuleList, live: LiveBytes) -> None:
    """Begin a window of `live` at the first layer, at the last one and at those between, forward and backward.

    A single layer is both first and last: see `peaks_by_window`.
    """

    def before(layer: nn.Module, window: str) -> None:
        layer.register_forward_pre_hook(lambda *_: live.mark(window))

    def backward(layer: nn.Module, window: str) -> None:
        """Begin `window` when the gradient of the layer's output arrives."""

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: live.mark(window))

        layer.register_forward_hook(hook)

    def at_input(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda _: live.mark("embedding backward"))

    layers[0].register_forward_pre_hook(at_input)
    before(layers[0], "first layer forward")
    if len(layers) > 2:
        before(layers[1], BETWEEN[0])
        backward(layers[-2], BETWEEN[1])
    if len(layers) > 1:
        before(layers[-1], "last layer forward")
        backward(layers[0], "first layer backward")
    backward(layers[-1], "last layer backward")
    layers[-1].register_forward_hook(lambda *_: live.mark("head"))


BETWEEN = ("middle layers forward", "middle layers backward")


def peaks_by_window(live: LiveBytes, depth: int, state: int) -> dict[str, dict[str, float]]:
    """Peaks by window and kind of a step that begins with `state` bytes of optimizer state.

    Layers between the first and the last are left out: a linear function has its maximum at an end.
    """
    windows: dict[str, dict[str, float]] = {
        name: dict(peak.kinds.items()) for name, peak in live.windows.items() if peak.kinds and name not in BETWEEN
    }
    for name, kinds in windows.items():
        if name != "optimizer":
            kinds["optimizer"] = state
    if depth == 1:
        windows["last layer forward"] = windows["first layer forward"]
        if "last layer backward" in windows:
            windows["first layer backward"] = windows["last layer backward"]
    return windows
