"""A plan as a data frame: what the cells of a grid would take."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.errors import require_positive
from harness.python.launching import SETTINGS, amount_of, requested, undisturbed
from harness.python.overrides import overrides_of
from harness.record import Record
from harness.report.frame import KINDS, setting_texts

if TYPE_CHECKING:
    from harness.sweep.estimates.times import Times
    from harness.sweep.planner import Impossible, Plan, Planned

OPTIONS = ("model", "methods", "sweep", "budget", "device", "throughput", "price", *SETTINGS)
TEXTS = ("cell", "method", "setting", "model", "data", "limited_by", "reason")
FLAGS = ("fits", "tight")
NUMBERS = ("alpha", "lr", "seconds", "seconds_least", "seconds_most", "dollars", "flops")
COLUMNS = ["cell", "method", "setting", "model", "data", "rank", "alpha", "lr", "seed", "batch_size"]
COLUMNS += ["grad_accum", "max_length", "fits", "tight", "limited_by", "reason", "largest_batch"]
COLUMNS += ["peak", "reserved", "overhead", "budget"]
COLUMNS += [f"peak_{kind}" for kind in KINDS]
COLUMNS += ["resident", "trainable", "total", "flops", "seconds", "seconds_least", "seconds_most", "dollars"]


def plan(
    sweep: str | None,
    axes: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    budget: int | str | None,
    options: Mapping[str, Any],
    config_dir: str | os.PathLike[str] | None,
    quiet: bool,
) -> pd.DataFrame:
    """`harness.plan`."""
    amount = amount_of(budget)
    for name in ("throughput", "price"):
        require_positive(name, options[name])
    from harness.sweep import app
    from harness.sweep.plan_view import unknown_lengths

    overrides = overrides_of(axes, settings, OPTIONS, grid=True)
    overrides = overrides if sweep is None else [sweep, *overrides]
    frames: list[pd.DataFrame] = []

    def keep(plan: Plan, times: Times) -> None:
        frames.append(frame(plan, times))
        for sentence in (*unknown_lengths(plan, times), *plan.remedies):
            print(sentence, file=sys.stderr)

    with undisturbed(quiet):
        more = {"plan": True, "show": keep, **options}
        app.main(*requested("plan", overrides, budget=amount, config_dir=config_dir, **more))
    return frames[0] if frames else _typed(pd.DataFrame(columns=COLUMNS))


def frame(plan: Plan, times: Times) -> pd.DataFrame:
    """A row a cell of `plan`, equal ones once, in the order of the grid; what is not known is null.

    cell                                text: the cell's name, or the settings of one that can't be
    method, setting, model, data        text; setting is what distinguishes the cell within its method
    rank, alpha, lr, seed               the cell's axes; null where the method does not use them
    batch_size                          sequences a micro-batch, as it would run
    grad_accum                          micro-batches a step
    max_length                          tokens at which a sequence is cut
    fits                                whether live tensors, on a GPU holes between them too, and overhead are within
                                        the budget; null if they are not known
    tight                               whether it fits, but with so little room that a step of another shape may
                                        decide
    limited_by                          text: of a cell that does not fit the kind of memory that takes most; of one
                                        sharded that lacks it elsewhere than in training the phase, or `host`,
                                        a machine's own memory; `settings` of one that can't run; else null
    reason                              text: why a cell can't run, or can't be predicted
    largest_batch                       the largest batch_size that fits

    Memory, in bytes:

    peak                                live tensors at the peak of a training step
    reserved                            what CUDA's allocator takes for them, holes included; null if it is not
                                        predicted: on a CPU, and of a sharded cell
    overhead                            what no tensor shows: CUDA's context, libraries
    budget                              that the two must be within
    peak_KIND                           what of the peak is of this kind: weights, adapters, gradients, optimizer (its
                                        states) or activations
    resident                            live tensors held between two steps

    Work:

    trainable, total                    how many weights are trained, and how many there are
    flops                               FLOPs of all training steps
    seconds                             seconds of all training steps; null without records or a calibration of the
                                        device, or rates of the card
    seconds_least, seconds_most         the range of published runs, where they rest on the rates of a card; else null
    dollars                             dollars for that time on all devices; null without a price
    """
    composed = [point.cell for point in plan.points if point.cell is not None]
    settings = iter(setting_texts([Record(cell, "", "unfit", "", 0.0, {}) for cell in composed]))
    rows = [
        _row(plan, times, point) | {"setting": next(settings) if point.cell is not None else None}
        for point in plan.points
    ]
    return _typed(pd.DataFrame(rows, columns=COLUMNS))


def _row(plan: Plan, times: Times, point: Planned | Impossible) -> dict[str, Any]:
    from harness.sweep.planner import Impossible, phases_of
    from harness.sweep.runner import BESIDE, TIGHT

    row = {"cell": point.name, "overhead": BESIDE, "budget": plan.budget}
    if (cell := point.cell) is not None:
        train = cell.settings.train
        row |= {name: getattr(cell, name) for name in ("method", "model", "data", "rank", "alpha", "lr", "seed")}
        row |= {"max_length": train.max_length, "grad_accum": train.grad_accum}
        row |= {"batch_size": None if train.sizes_itself else train.batch_size}
    if isinstance(point, Impossible):
        return row | {"fits": False, "tight": False, "limited_by": "settings", "reason": point.reason}
    prediction = point.prediction
    if "unknown" in prediction:
        return row | {"reason": prediction["unknown"]}
    if prediction["micro_batch"] is not None:
        from harness.sweep import micro_batch

        batches = micro_batch.planned(point.cell, prediction)
        row |= {"batch_size": batches.batch_size, "grad_accum": batches.grad_accum}
    shortage = plan.shortage(point)
    limit = None if shortage is None else shortage.phase
    return row | {
        "fits": shortage is None,
        "tight": shortage is None and max(phases_of(point).values()) + BESIDE > TIGHT * plan.budget,
        "limited_by": max(KINDS, key=lambda kind: prediction["peak"][kind]) if limit == "train" else limit,
        "largest_batch": prediction["largest_batch"],
        "peak": point.peak,
        "reserved": point.reserved,
        **{f"peak_{kind}": prediction["peak"][kind] for kind in KINDS},
        "resident": sum(prediction["resident"].values()),
        "trainable": prediction["trainable"],
        "total": prediction["total"],
        "flops": prediction["flops"] + prediction["reference_flops"],
        "seconds": times.seconds(point),
        **dict(zip(("seconds_least", "seconds_most"), times.range(point) or (None, None), strict=True)),
        "dollars": times.dollars(point),
    }


def _typed(data: pd.DataFrame) -> pd.DataFrame:
    kinds = {name: "Int64" for name in COLUMNS if name not in (*TEXTS, *FLAGS, *NUMBERS)}
    kinds |= dict.fromkeys(FLAGS, "boolean") | dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(TEXTS, "object")
    return data.astype(kinds)
