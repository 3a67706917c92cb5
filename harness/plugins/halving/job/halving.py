"""Ends hopeless cells early: asynchronous successive halving (ASHA) on the validation loss, by optuna's pruner.

Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020. A rung is a number of tokens. A cell that
reaches one goes on if its validation loss is among the best 1/factor of those that have reached it so far, and the best
one always goes on. Cells compete that have the same method, model, data and token budget: no method ends another's.

Each cell notes its losses in a file of its own, so cells of several processes and machines compete without a server.
Cells that differ in their seeds alone are one competitor, for which the first at a rung decides: if each seed ended
other settings, none would finish with every seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from harness import record
from harness.job.ended import CellEnded
from harness.protocol import EarlyStopping
from harness.record import Cell, StopRule, ValidationPoint
from harness.settings import cell_id

if TYPE_CHECKING:
    from harness.job.measure.phases import Meter


class Pruned(CellEnded):
    """A rule ended the cell early."""

    status = "pruned"


@dataclass
class RungResult:
    """A cell at a rung: its tokens and its loss there, and why it ended (null: it went on).

    decided: whether its own loss decided that, and not an earlier seed of its setting.
    """

    rung: int
    tokens: int
    loss: float
    decided: bool
    ended: str | None


@dataclass
class Competitor:
    """A cell's results at the rungs. group: equal for the cells that compete. setting: equal for seeds of a setting."""

    cell: str
    group: str
    setting: str
    results: list[RungResult] = field(default_factory=list)

    @classmethod
    def of_cell(cls, cell: Cell, rule: StopRule) -> Competitor:
        train = cell.settings.train.tuned()
        steps = (train.max_steps, train.micro_batch * train.grad_accum, train.packing)
        budget = (train.max_length, train.max_tokens or (train.epochs and f"{train.epochs:g} epochs") or steps)
        objective = (train.objective, train.preference_beta)  # of another one, losses can't be compared
        group = json.dumps([cell.method, cell.model, cell.data, objective, budget, rule.first, rule.factor])
        return cls(cell.name, group, cell_id(dataclasses.replace(cell.settings, seed=None)))

    @property
    def losses(self) -> dict[int, float]:
        """By rung, the losses that decided."""
        return {result.rung: result.loss for result in self.results if result.decided}

    def at(self, rung: int) -> RungResult | None:
        return next((result for result in self.results if result.rung == rung), None)


@dataclass
class CellHalving:
    """The rungs of one running cell, by the step that reaches them, and what the other cells in `folder` did there.

    meter: its open window leaves out what deciding takes. ended: the early end.
    """

    rule: StopRule
    folder: Path
    own: Competitor
    rungs: dict[int, int]
    meter: Meter
    ended: Pruned | None = None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.own.cell}.json"

    def decides_at(self, step: int) -> bool:
        return step in self.rungs

    def ends(self, step: int, tokens: int, loss: float) -> str | None:
        """Note the validation loss at the rung of `step`, and return why the cell ends there; None if it goes on."""
        rung = self.rungs[step]
        if (known := self.own.at(rung)) is None:
            others = [found for path in self.folder.glob("*.json") if (found := _read(path)) is not None]
            others = [other for other in others if other.group == self.own.group and other.cell != self.own.cell]
            decided, ended = self._judge(rung, loss, others)
            known = RungResult(rung, tokens, loss, decided, ended)
            self.own.results.append(known)
            record.write_json(dataclasses.asdict(self.own), self.path)
        if known.ended is not None:
            self.ended = Pruned(known.ended, step)
        return known.ended

    def stops(self, step: int, validations: Sequence[ValidationPoint], accelerator: Accelerator) -> bool:
        """Whether the training ends after `step`, the last of `validations` if it is a rung.

        The first process decides for all.
        """
        if step not in self.rungs:
            return False
        at = validations[-1]
        with self.meter.aside():
            ends = [accelerator.is_main_process and self.ends(step, at.tokens, at.loss) is not None]
            broadcast_object_list(ends)
        return ends[0]

    def _judge(self, rung: int, loss: float, others: Sequence[Competitor]) -> tuple[bool, str | None]:
        """Whether the loss decides, and why the cell ends."""
        seeds = [other for other in others if other.setting == self.own.setting]
        for seed in seeds:
            if any(result.ended for result in seed.results):
                return False, f"Ended early by stop=asha, as {seed.cell}, the same setting with another seed, was."
        if any(seed.at(rung) for seed in seeds):
            return False, None
        by_setting: dict[str, dict[int, float]] = {}
        for competitor in (*others, self.own):
            by_setting[competitor.setting] = by_setting.get(competitor.setting, {}) | competitor.losses
        own = by_setting.pop(self.own.setting) | {rung: loss}
        if goes_on(self.rule, own, by_setting.values()):
            return True, None
        there = [loss, *(losses[rung] for losses in by_setting.values() if rung in losses)]
        going = len(there) // self.rule.factor
        best = "the best" if going < 2 else f"among the best {going}"
        return True, (
            f"Ended early by stop=asha: its validation loss, {loss:.4g}, is not {best} of {len(there)} settings at "
            f"this point (best: {min(there):.4g})."
        )


def early_stop(cell: Cell, stopping: EarlyStopping, step_tokens: Sequence[int], meter: Meter) -> CellHalving:
    """The halving of `cell`, whose steps have `step_tokens`."""
    import optuna  # noqa: F401  now, as it takes time and memory that would be training's

    rule = stopping.rule
    halving = CellHalving(rule, Path(stopping.folder), Competitor.of_cell(cell, rule), rungs(rule, step_tokens), meter)
    if (earlier := _read(halving.path)) is not None and earlier.group == halving.own.group:
        halving.own.results = earlier.results  # of a process that was killed
    return halving


def rungs(rule: StopRule, step_tokens: Sequence[int]) -> dict[int, int]:
    """The number of each rung by the step that reaches it. The last step is none: the cell ends there anyway."""
    reached = list(itertools.accumulate(step_tokens))
    found: dict[int, int] = {}
    for rung in itertools.count():
        share = min(rule.first * rule.factor**rung, 1) * (1 - 1e-9)  # 0.1 × 3 is a little more than 0.3
        step = next(step for step, tokens in enumerate(reached, start=1) if tokens >= share * reached[-1])
        if step == len(reached):
            break
        found[step] = rung
    return found


def goes_on(rule: StopRule, own: Mapping[int, float], others: Iterable[Mapping[int, float]]) -> bool:
    """Whether optuna's pruner lets a setting go on that has the losses `own` by rung, the last of them new.

    others: losses by rung of each other setting. Of several seeds of a setting each may have decided at another rung.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=rule.factor)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    prune = False
    for losses in (*others, own):
        trial = study.ask()
        for rung, loss in sorted(losses.items()):
            trial.report(loss, rule.factor**rung)
            prune = trial.should_prune()  # which also enters the loss into the rung
    return not prune


def _read(path: Path) -> Competitor | None:
    try:
        return record.decode(Competitor, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None  # removed at this moment, or damaged: the cell does not compete
