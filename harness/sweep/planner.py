"""Plans a grid before anything runs: memory and FLOPs predicted by a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import units
from harness.protocol import PlannedCell
from harness.record import Calibration, Cell
from harness.settings import Settings
from harness.sweep import runner
from harness.sweep.estimates.card import Card
from harness.sweep.runner import BESIDE

REMEDIES = 8  # cells of which a plan says what would make them fit
SMALL = ("full_bf16", "galore_bf16", "galore_8bit_layer")  # methods that train all weights in little memory


@dataclass
class Planned:
    """A point of the grid that can run, with its prediction.

    prediction: the job's figures; or a reason, under ``unknown``, why its memory can't be predicted.
    """

    name: str
    cell: Cell
    prediction: dict[str, Any]

    @property
    def peak(self) -> int:
        """Peak of live tensors in bytes."""
        return sum(self.prediction["peak"].values())

    @property
    def reserved(self) -> int | None:
        """Bytes that CUDA's allocator reserves; None where that is not predicted."""
        size: int | None = self.prediction.get("reserved")
        return size

    @property
    def taken(self) -> int:
        """Bytes that must be free: what CUDA's allocator needs for them, or else the peak of live tensors."""
        size: int = self.prediction["needed"]
        return size

    @property
    def counted(self) -> str:
        """What `taken` counts."""
        return "live tensors" if self.reserved is None else "live tensors and holes between them"


@dataclass
class Impossible:
    """A point of the grid that can't run, and why. cell: None if its settings make none."""

    name: str
    reason: str
    cell: Cell | None = None


@dataclass(frozen=True)
class PhaseShortage:
    """Why a cell does not fit: bytes that its `phase` takes, and has. The phase `host` is a machine's own memory."""

    phase: str
    size: int
    budget: int


@dataclass
class Plan:
    """The planned points of a grid.

    budget: bytes of memory that each cell must fit in. environment: this machine's, as in a record. kernels: whose
    kernels the prediction assumes, ``cpu`` or ``cuda``. card: that the plan is for (null: this machine's device, or a
    card of which no more is known). remedies: where nothing fits, a sentence on each cell. host: bytes of a machine's
    own memory (null: not known, as the plan is for another). calibration: device and date of the one that times rest
    on (null: none).
    """

    points: list[Planned | Impossible]
    budget: int
    environment: dict[str, Any]
    kernels: str
    card: Card | None = None
    remedies: list[str] = field(default_factory=list)
    host: int | None = None
    calibration: dict[str, Any] | None = None

    @property
    def predicted(self) -> list[Planned]:
        """The points whose memory is predicted."""
        return [point for point in self.points if isinstance(point, Planned) and "unknown" not in point.prediction]

    def fits(self, point: Planned) -> bool:
        """Whether the point fits the budget. A point that can't be predicted counts as fitting."""
        return "unknown" in point.prediction or self.shortage(point) is None

    def shortage(self, point: Planned) -> PhaseShortage | None:
        """The first phase in which the predicted `point` takes more than there is, if one does."""
        for phase, size in phases_of(point).items():
            if size + BESIDE > self.budget:
                return PhaseShortage(phase, size, self.budget)
        host = point.prediction.get("host")
        if host is not None and self.host is not None and host["first"] > self.host:
            return PhaseShortage("host", host["first"], self.host)
        return None


def phases_of(point: Planned) -> dict[str, int]:
    """Bytes that the phases of `point` take of a device; one that is not sharded takes most in training."""
    return point.prediction.get("phases") or {"train": point.taken}


def refusal(plan: Plan, point: Planned) -> str:
    """The sentence on a cell that does not fit, for its record."""
    shortage = plan.shortage(point) or PhaseShortage("train", point.taken, plan.budget)
    if shortage.phase == "host":
        return (
            f"Its first machine reads {units.size(shortage.size)} of weights, which exceeds that machine's memory of "
            f"{units.size(shortage.budget)}."
        )
    after = "" if shortage.phase == "train" else f" in the phase {shortage.phase}"
    return (
        f"Its predicted peak{after}, {units.size(shortage.size)} of {point.counted} and {units.size(BESIDE)} of "
        f"overhead, exceeds the budget of {units.size(shortage.budget)}."
    )


def make(
    points: Sequence[tuple[str, Cell | str]],
    architectures: dict[str, dict[str, Any]],
    data_root: str | None,
    budget: int | None,
    device: str | None = None,
    card: Card | None = None,
    remedies: bool = True,
    calibrations: Sequence[Calibration] = (),
) -> Plan:
    """Predict each of `points`: a name with a cell, or with the reason why there is none.

    architectures: dimensions by model name, of models whose own config need not be loaded. budget: bytes, also of a
    card in another machine (None: the memory of `card`, or of this machine's device). device: whose kernels to assume,
    ``cpu`` or ``cuda`` (None: CUDA's if the budget is a GPU's). card: one that need not be here (None: none).
    remedies: whether the plan says what would fit where nothing does. calibrations: of devices, of which that of the
    card or of this machine's device counts.
    """
    rates, here = None, card is None and budget is None
    if card is not None:
        points = [(name, _refused(cell, card) or cell) for name, cell in points]
        budget, device, rates = budget or card.memory, "cuda", card.rates
        calibrations = [c for c in calibrations if c.device[0] == "cuda" and c.device[1] in card.devices]
    cells = [cell for _, cell in points if isinstance(cell, Cell)]
    requests = [PlannedCell(cell, architectures.get(cell.model)) for cell in cells]
    answer = runner.plan(requests, data_root, budget, device, rates, calibrations)
    predictions = iter(answer["predictions"])
    planned = [
        _planned(name, cell, next(predictions)) if isinstance(cell, Cell) else Impossible(name, cell)
        for name, cell in points
    ]
    plan = Plan(planned, answer["budget"], answer["environment"], answer["kernels"], card)
    plan.host = answer["environment"]["cpu"]["memory_bytes"] if here else None
    plan.calibration = answer["calibration"]
    if remedies:
        plan.remedies = _remedies(plan, architectures, data_root)
    return plan


def _planned(name: str, cell: Cell, prediction: dict[str, Any]) -> Planned | Impossible:
    """A point by what its job says: figures, or under ``impossible`` why it can't run."""
    reason = prediction.get("impossible")
    return Planned(name, cell, prediction) if reason is None else Impossible(name, reason, cell)


def _refused(cell: Cell | str, card: Card) -> str | None:
    """Why `cell` can't run on `card`: it asks for arithmetic in 16 bits, which the card has not."""
    if isinstance(cell, str) or card.bf16_tflops is not None:
        return None
    setting = cell.settings.in_sixteen_bits
    return setting and (
        f"{setting} requires a GPU of compute capability 8.0 or more, got {card.name}; use train.precision=fp32 "
        "model.dtype=float32."
    )


def _remedies(plan: Plan, architectures: dict[str, dict[str, Any]], data_root: str | None) -> list[str]:
    """What makes methods fit of which no cell does: smaller micro-batches, recomputed activations."""
    fitting = {point.cell.method for point in plan.predicted if plan.fits(point)}
    without = [point for point in plan.predicted if point.cell.method not in fitting]
    without.sort(key=lambda point: point.taken)
    if fitting:  # of each of the others its smallest cell
        smallest: dict[str, Planned] = {}
        for point in without:
            smallest.setdefault(point.cell.method, point)
        without = list(smallest.values())
    least = without[:REMEDIES]
    if not least:
        return []
    smaller = [_smaller(point) for point in least]
    requests = [PlannedCell(cell, architectures.get(cell.model)) for cells in smaller for cell in cells]
    rates = None if plan.card is None else plan.card.rates
    answers = runner.plan(requests, data_root, plan.budget, plan.kernels, rates)["predictions"]
    predictions = iter(
        [Planned(planned.cell.name, planned.cell, answer) for planned, answer in zip(requests, answers, strict=True)]
    )
    return [
        _remedy(plan, point, [next(predictions) for _ in cells]) for point, cells in zip(least, smaller, strict=True)
    ]


def _smaller(point: Planned) -> list[Cell]:
    """The cell in steps of the same size that take less memory: with the largest micro-batch that may fit, then one
    sequence a device, then recomputed activations."""
    train, method = point.cell.settings.train.validated(), point.cell.settings.method
    devices, step = train.total_devices, train.micro_batch * (train.grad_accum or 1)
    most = point.prediction["largest_batch"] or devices
    even = [size for size in range(devices, most + 1, devices) if train.micro_batch % size == 0]
    sizes = list(dict.fromkeys([max(even, default=devices), devices]))
    if (method.optim or {}).get("per_layer"):  # it can't accumulate
        sizes = [train.micro_batch]
    variants: list[dict[str, Any]] = [{"batch_size": size} for size in sizes]
    if method.tuned:
        variants = [one | {"grad_accum": step // one["batch_size"], "global_batch": None} for one in variants]
    if method.tuned and not train.gradient_checkpointing:
        variants.append(variants[-1] | {"gradient_checkpointing": True})
    return [_training(point.cell, changes) for changes in variants]


def _training(cell: Cell, changes: dict[str, Any]) -> Cell:
    train = dataclasses.replace(cell.settings.train, **changes)
    return dataclasses.replace(cell, settings=dataclasses.replace(cell.settings, train=train))


def _remedy(plan: Plan, point: Planned, smaller: Sequence[Planned]) -> str:
    """The first of the `smaller` cells that fits, as what to type; if none does, what else there is."""
    predicted = [point for point in smaller if "peak" in point.prediction]
    for other in predicted:
        if plan.fits(other):
            train = other.cell.settings.train
            settings = [f"train.batch_size={train.batch_size}"]
            settings += [f"train.grad_accum={train.grad_accum}"] if train.grad_accum else []
            settings += ["train.gradient_checkpointing=true"] if train.gradient_checkpointing else []
            return f"{point.name} fits with {' '.join(settings)}."
    # Not always with one sequence: a step that accumulates may take more than one that does not.
    least = min(max(phases_of(other).values()) for other in (point, *predicted))
    return (
        f"{point.name} fits with no batch size: it takes {units.size(least + BESIDE)} or more. Take "
        f"{_instead(point.cell.settings)}a smaller model or more memory."
    )


def _instead(settings: Settings) -> str:
    """What takes less memory than the method and the weights of `settings`, as the begin of a list."""
    if settings.method.bits is not None:
        return ""
    own = [] if settings.model.dtype == "bfloat16" else ["model.dtype=bfloat16"]
    if settings.method.tuned and settings.method.adapt is None:
        if settings.method.name not in SMALL:
            own.append(f"a method with weights and states of two bytes or less ({', '.join(SMALL)})")
        own.append("an adapter (lora)")
    return f"{', '.join([*own, 'a method with a quantised base (qlora)'])}, "
