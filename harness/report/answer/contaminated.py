"""What is said before all else of scores on items that were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.record import Contamination, Record
from harness.score_names import task_label

MATTERS = 0.1  # share of a task's items, from which on its scores say little about new ones


def cautions(records: Sequence[Record]) -> Iterator[str]:
    """A sentence for each task of which a cell was trained on a share of the items that matters.

    Items that share an n-gram alone do not count: a template has them all in common. The linter names these.
    """
    worst: dict[str, Contamination] = {}
    for record in records:
        for task, counts in record.contamination.items():
            if _trained_on(counts) > _trained_on(worst.get(task)):
                worst[task] = counts
    for task, counts in worst.items():
        if _trained_on(counts) < MATTERS * counts.items:
            continue
        counted = f"Caution: {_trained_on(counts):,} of {counts.items:,} items of {task_label(task)} are"
        if counts.same:
            kinds = "questions or near-duplicates" if counts.near else "questions"
            yield (
                f"{counted} {kinds} of the training data, so its scores show memory more than skill; remove them from "
                "one side."
            )
        else:
            yield (
                f"{counted} worded almost as training questions, and none is one of them: they share a template, or "
                "are paraphrases. Scores are of such questions alone; remove paraphrases from one side."
            )


def _trained_on(counts: Contamination | None) -> int:
    return (counts.same or 0) + (counts.near or 0) if counts else 0
