"""`plan --advise`: the settings with which a card trains the same steps in the least time, by the estimate.

A step keeps its sequences. What is searched is how it is cut into micro-batches, whether activations are recomputed,
and the method. The precision is bf16 where the card has it: no rate of fp32 is higher, and no tensor smaller.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness import record, terminal, units
from harness.errors import UserError
from harness.program import PROGRAM
from harness.sweep import plan_view, planner
from harness.sweep.app.point import Point, architectures, point_of
from harness.sweep.app.predicting import Compose, results_of, times_of
from harness.sweep.app.session import Options
from harness.sweep.estimates.times import Times
from harness.sweep.planner import Impossible, Plan, Planned
from harness.sweep.runner import BESIDE
from harness.terminal import FittedColumn

METHODS = "full,lora,qlora"  # that are compared if no method is given
SEARCHED = ("train.batch_size", "train.grad_accum", "train.global_batch", "train.gradient_checkpointing")
COLUMNS = (
    FittedColumn("method", 0),
    FittedColumn("setting", 1, least=20),
    FittedColumn("batch × accumulation", 2),
    FittedColumn("checkpointing", 2),
    FittedColumn("peak", 2, right=True),
    FittedColumn("time", 1, right=True),
    FittedColumn("cost", 1, right=True),
)


@dataclass(frozen=True)
class Variant:
    """One way to train the steps of a requested cell.

    fixed: the overrides that are not searched. step: sequences of a step.
    """

    point: Point
    fixed: list[str]
    step: int

    def typed(self, planned: Planned) -> list[str]:
        """The overrides of a run of this variant with the micro-batch that fits by `planned`."""
        train, size = self.point.cell.settings.train, planned.prediction["micro_batch"] or self.step
        if self.step % size:  # no plain setting cuts the step so
            batch = ["train.batch_size=auto", f"train.global_batch={self.step}"]
        else:
            batch = [f"train.batch_size={size}", f"train.grad_accum={self.step // size}"]
        return [*self.fixed, *batch, f"train.gradient_checkpointing={str(train.gradient_checkpointing).lower()}"]


@dataclass(frozen=True)
class Timed:
    """A variant that fits, as it is planned, and the seconds that its steps are to take."""

    variant: Variant
    planned: Planned
    seconds: float


def advise(requested: Sequence[list[str]], compose: Compose, options: Options, config_name: str) -> None:
    """Print for each of the `requested` cells the fastest settings that fit, and the command of the fastest of all.

    config_name: of the named sweep, or ``config``. Raises UserError if no cell is trained, or if nothing fits.
    """
    if config_name == "config" and not any(o.startswith("method=") for overrides in requested for o in overrides):
        requested = [[*overrides, f"method={m}"] for overrides in requested for m in METHODS.split(",")]
    groups = _variants(requested, compose)
    variants = [variant for group in groups for variant in group]
    composed, _ = compose(requested[0])
    points = [variant.point for variant in variants]
    cells = [(point.cell.name, point.cell) for point in points]
    of, root = architectures(points), composed.data_root
    timed = record.calibrations(results_of(composed))
    plan = planner.make(
        cells, of, root, options.memory, options.device, options.card, remedies=False, calibrations=timed
    )
    times, planned = times_of(plan, composed, options), iter(plan.points)
    predictions = [[(variant, next(planned)) for variant in group] for group in groups]
    best = [_best(pairs, plan, times) for pairs in predictions]
    ranking = sorted((one for one in best if one is not None), key=lambda one: one.seconds)
    if not ranking:
        raise _nothing(plan)
    without = [[point for _, point in pairs] for pairs, one in zip(predictions, best, strict=True) if one is None]
    _print(plan, times, ranking, too_large(plan, without), config_name)


def _variants(requested: Sequence[list[str]], compose: Compose) -> list[list[Variant]]:
    """Of each requested cell that is trained its variants. UserError if there is none, with the first reason."""
    groups: dict[str, list[Variant]] = {}
    refused: list[UserError] = []
    for overrides in requested:
        fixed = [override for override in overrides if override.partition("=")[0] not in SEARCHED]
        config, applicable = compose(overrides)
        try:
            point = point_of(config, applicable)
        except UserError as error:
            refused.append(error)
            continue
        optim = point.cell.settings.method.optim
        if optim is None:
            continue
        train = point.cell.settings.train.tuned()
        step = train.micro_batch * train.grad_accum
        cut = ["train.batch_size=auto", f"train.global_batch={step}"]
        if optim.get("per_layer"):  # it can't accumulate
            cut = [f"train.batch_size={step}"]
        for again in ("false", "true"):
            try:
                variant = point_of(*compose([*fixed, *cut, f"train.gradient_checkpointing={again}"]))
            except UserError as error:
                refused.append(error)
            else:
                groups.setdefault(point.cell.id, []).append(Variant(variant, fixed, step))
    if not groups:
        raise refused[0] if refused else UserError("--advise requires a method that is trained.")
    return list(groups.values())


def _best(variants: Sequence[tuple[Variant, Planned | Impossible]], plan: Plan, times: Times) -> Timed | None:
    """The fastest that fits; None if none does or its time is unknown."""
    timed = [
        Timed(variant, point, seconds)
        for variant, point in variants
        if isinstance(point, Planned) and "peak" in point.prediction and plan.fits(point)
        if (seconds := times.seconds(point)) is not None
    ]
    return min(timed, key=lambda one: one.seconds, default=None)


def too_large(plan: Plan, without: Sequence[Sequence[Planned | Impossible]]) -> list[str]:
    """A sentence on each cell none of whose variants, `without`, fits: the least that one of them takes."""
    sentences = []
    for variants in without:
        predicted = [point for point in variants if isinstance(point, Planned) and "peak" in point.prediction]
        if predicted and not any(map(plan.fits, predicted)):
            least = min(planned.taken for planned in predicted)
            sentences.append(f"{predicted[0].cell.method} does not fit: it takes {units.size(least + BESIDE)}.")
    return sentences


def _nothing(plan: Plan) -> UserError:
    predicted = plan.predicted
    if not predicted:
        first = plan.points[0]
        return UserError(first.reason if isinstance(first, Impossible) else first.prediction["unknown"])
    if any(map(plan.fits, predicted)):
        return UserError("--advise requires train.max_steps=: how many steps the data gives is not known here.")
    least = min(predicted, key=lambda point: point.taken)
    card = "the budget" if plan.card is None else plan.card.name
    return UserError(
        f"Nothing fits {card} ({units.size(plan.budget)}): with one sequence at a time, "
        f"{least.cell.method} takes least, {units.size(least.taken + BESIDE)}; take a smaller model or a larger card."
    )


def _print(plan: Plan, times: Times, ranking: list[Timed], too_large: list[str], config_name: str) -> None:
    from rich.text import Text

    columns = [column for column in COLUMNS if column.header != "cost" or times.price is not None]
    rows = [_row(one, times)[: len(columns)] for one in ranking]
    console = terminal.console()
    table, _ = terminal.fitted(columns, rows, console.width)
    fastest = ranking[0]
    start = "run" if config_name == "config" else f"sweep {config_name}"
    command = f"{PROGRAM} {start} {shlex.join(fastest.variant.typed(fastest.planned))}"
    assumed = plan_view.unknown_lengths(replace(plan, points=[fastest.planned]), times)
    notes = [
        *too_large,
        *dict.fromkeys(plan_view.outside(plan)),
        *plan_view.time_notes(plan, times),
        "All train the same steps on the same sequences. Methods learn differently: this says what is fast, not what "
        "is good.",
    ]
    width = min(console.width, 110)
    lines = [line for note in notes for line in textwrap.wrap(note, width)]
    first = [Text(line) for note in assumed for line in (*textwrap.wrap(note, width), "")]
    card = "" if plan.card is None else plan.card.name
    answer = f"Fastest that fits {card}, by the estimate: {fastest.planned.cell.method}. To run it:"
    text = [Text(""), Text(answer), Text(""), Text(f"  {command}", no_wrap=True), Text(""), *map(Text, lines)]
    terminal.show(console, [*first, table, *text])


def _row(one: Timed, times: Times) -> list[str]:
    cell, step, cost = one.planned.cell, one.variant.step, times.dollars(one.planned)
    size = one.planned.prediction["micro_batch"] or step
    return [
        cell.method,
        " ".join(
            f"{axis}={record.short(value)}" for axis in ("rank", "lr") if (value := getattr(cell, axis)) is not None
        ),
        f"{size} × {-(-step // size)}",
        "yes" if cell.settings.train.gradient_checkpointing else "no",
        units.size(one.planned.peak),
        plan_view.told_time(one.seconds, times.range(one.planned)),
        "–" if cost is None else units.dollars(cost),
    ]
