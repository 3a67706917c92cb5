"""The state of one `run`, `sweep`, `plan` or `calibrate`: what was asked for, and what became of its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import UserError
from harness.record import COMPLETE, JudgingRules, Record
from harness.sweep.app.order import Order
from harness.sweep.estimates.card import Card
from harness.sweep.estimates.times import Times
from harness.sweep.planner import Plan
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study

Choose = Callable[[Sequence[Record]], list[list[Record]]]  # of a study's records, those that chose each setting


@dataclass(frozen=True)
class Options:
    """What a command line asks for besides Hydra's settings.

    plan: predict, and launch nothing. calibrate: time kernels, and launch nothing.
    fit: skip cells that are predicted not to fit into memory.
    memory: budget in bytes (null: the memory of this machine's device). dollars: budget for cells that cost money, as
    plug-ins say (null: none). device: whose kernels are predicted, ``cpu`` or ``cuda`` (null: CUDA's if the budget is a
    GPU's).
    card: one that need not be here, for which is predicted (null: none). throughput: raw tokens/s of every cell (null:
    taken from records). price: dollars for an hour of one device (null: the card's). advise: search for the fastest
    settings that fit the card. order: of the cells, ``random`` or ``grid``.
    drift: cells between two repeats of one cell, which show the machine's drift (null: no repeats).
    skip_impossible: leave out the cells of a grid that can't work, where others can.
    confirm: fresh seeds to run of each chosen setting (null: none). choose: what chooses them. rules: that will judge
    the study, which its plan notes (null: the sweep writes no plan).
    typed: the arguments of `harness`, which the study notes. show: what is done with a plan (null: it is printed).
    """

    plan: bool = False
    fit: bool = False
    memory: int | None = None
    dollars: float | None = None
    device: str | None = None
    card: Card | None = None
    throughput: float | None = None
    price: float | None = None
    advise: bool = False
    calibrate: bool = False
    order: Order = "random"
    drift: int | None = None
    skip_impossible: bool = False
    confirm: int | None = None
    choose: Choose | None = None
    rules: JudgingRules | None = None
    typed: tuple[str, ...] = ()
    show: Callable[[Plan, Times], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its record's status, and its last validation loss, which tuning sweepers minimise.

    Of a pruned cell that is the loss at its rung: a sampler learns that the setting is a poor one, where a failed trial
    would teach it nothing.
    """

    status: str
    loss: float | None

    @classmethod
    def of_record(cls, record: Record) -> Outcome:
        lasts = record.validation[-1:] if record.status in COMPLETE else []
        return cls(record.status, next((point.loss for point in lasts), None))

    def __float__(self) -> float:
        if self.loss is None:
            raise ValueError(f"a cell that ended as {self.status} has no validation loss")
        return self.loss


@dataclass
class Session:
    """The state that the sweeper and the grid points of one command line share in this process.

    progress: of a planned sweep; null for a single cell and in a launcher's worker. outcomes: one for each cell, or
    the error that refused it. recorded: by cell id, the record that was there when the sweep was planned. study: of a
    sweep. record: of the cell that ran in this process last, or was found recorded; folder: of its study (null: all
    cells ran elsewhere).
    """

    options: Options = field(default_factory=Options)
    progress: SweepProgress | None = None
    outcomes: list[Outcome | UserError] = field(default_factory=list)
    recorded: dict[str, Record | None] = field(default_factory=dict)
    study: Study | None = None
    record: Record | None = None
    folder: Path | None = None

    @property
    def exit_status(self) -> int:
        """1 if a cell did not end as ok or pruned."""
        return int(any(isinstance(outcome, UserError) or outcome.status not in COMPLETE for outcome in self.outcomes))
