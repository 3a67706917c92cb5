"""The cells that stand for a study: of the method that its answer puts first, in the setting that `select` chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.record import Record
from harness.report.pairwise import contests
from harness.report.select import Choice
from harness.report.tables.answer import Place, place_answers
from harness.report.tables.rows import group


@dataclass(frozen=True)
class ChosenCell:
    """record: of the seed with the least validation loss, among those with saved weights if any has.

    answer: what the report says of the methods of its place.
    """

    record: Record
    answer: str


def chosen(records: Sequence[Record], folder: Path | None) -> dict[Place, ChosenCell]:
    """The chosen cell of each place (study, model, data) that has one.

    A place without scores has one if only one method was tuned there. folder: of the study, where the items lie.
    """
    rows = group(records)
    row_of = [row for row in rows for _ in row.records]
    tuned = [c for c in rows.choices if c.index and rows.records[c.index[0]].cell.seed is not None]
    by_label = {(c.place, c.label): row_of[c.index[0]] for c in rows.choices if c.index}
    answers = place_answers(contests(rows.records, folder, rows.choices), by_label)
    found = {}
    for place in dict.fromkeys(choice.place for choice in tuned):
        here = [choice for choice in tuned if choice.place == place]
        answer = answers.get(place)
        first = answer.first if answer else None
        choice = next((c for c in here if c.label == first), here[0] if len(here) == 1 else None)
        if choice is not None:
            said = " ".join(answer.sentences()) if answer else f"{choice.label} is the only tuned method."
            found[place] = ChosenCell(_of_seeds(choice, rows.records), said)
    return found


def _of_seeds(choice: Choice, records: Sequence[Record]) -> Record:
    seeds = [records[i] for i in choice.index]
    seeds = [record for record in seeds if record.saved] or seeds
    return min(seeds, key=lambda record: record.validation[-1].loss if record.validation else float("inf"))
