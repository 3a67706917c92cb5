"""The cells that stand for a study: of the method that its answer puts first, in the setting that `select` chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.record import Record
from harness.report.answer import answer
from harness.report.select import Choice, Place


@dataclass(frozen=True)
class ChosenCell:
    """record: of the seed with the least validation loss, among those with saved weights if any has.

    answer: what the report says of the methods of its place, and first whether the plan is not finished.
    """

    record: Record
    answer: str


def chosen(records: Sequence[Record], folder: Path | None) -> dict[Place, ChosenCell]:
    """The chosen cell of each place (study, model, data) that has one.

    A place without scores has one if only one method was tuned there. folder: of the study, where the items lie.
    """
    study = answer(records, folder)
    recorded = study.rows.records
    cells = {}
    for place, said in study.places.items():
        here = [choice for choice in study.choices if choice.place == place and choice.index]
        tuned = [choice for choice in here if recorded[choice.index[0]].cell.seed is not None]
        if said.best:
            sentences = " ".join([*study.plan.interim, *said.sentences])
            cells[place] = ChosenCell(_of_seeds(said.best[0].choice, recorded), sentences)
        elif len(tuned) == 1:
            cells[place] = ChosenCell(_of_seeds(tuned[0], recorded), f"{tuned[0].label} is the only tuned method.")
    return cells


def _of_seeds(choice: Choice, records: Sequence[Record]) -> Record:
    seeds = [records[i] for i in choice.index]
    seeds = [record for record in seeds if record.saved] or seeds
    return min(seeds, key=lambda record: float("inf") if (loss := record.validation_loss) is None else loss)
