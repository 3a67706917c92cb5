"""How well each class of a task is recognised, whose answers are labels: an accuracy hides one that none gets right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from harness import units
from harness.record import ClassCounts, Record
from harness.report.answer import StudyAnswer
from harness.report.select import Place
from harness.report.tables.entries import ABSENT
from harness.report.tables.rows import several_seeds
from harness.report.tables.table import Table, title
from harness.score_names import task_label


@dataclass(frozen=True)
class ClassScores:
    """What follows from the counts of one cell."""

    counts: ClassCounts

    @cached_property
    def _table(self) -> np.ndarray:
        """Items by true and predicted class; the last column has answers without a label."""
        return np.array(self.counts.counts, dtype=float)

    @cached_property
    def items(self) -> list[int]:
        """Of each class."""
        return [int(n) for n in self._table.sum(axis=1)]

    @property
    def accuracy(self) -> float:
        return float(np.trace(self._table) / self._table.sum())

    @property
    def recall(self) -> list[float | None]:
        """Of each class; None without items."""
        right = np.diagonal(self._table)
        return [float(hits / n) if n else None for hits, n in zip(right, self.items, strict=True)]

    @property
    def f1(self) -> list[float | None]:
        """Of each class; None without items."""
        right, predicted = np.diagonal(self._table), self._table.sum(axis=0)[:-1]
        triples = zip(right, self.items, predicted, strict=True)
        return [float(2 * hits / (n + guesses)) if n else None for hits, n, guesses in triples]

    @property
    def macro_f1(self) -> float:
        return fmean(value for value in self.f1 if value is not None)

    @property
    def majority(self) -> ClassScores:
        """Of a model that always says the label which most records of the training part have."""
        counts = self.counts
        most = counts.trained.index(max(counts.trained))
        always = [[n if i == most else 0 for i in range(len(counts.labels) + 1)] for n in self.items]
        return ClassScores(ClassCounts(counts.labels, counts.trained, always))

    @property
    def majority_label(self) -> str:
        return self.counts.labels[self.counts.trained.index(max(self.counts.trained))]


def class_tables(answer: StudyAnswer) -> list[Table]:
    """For each task whose answers are labels and each place: the methods, with F1 and recall of each class."""
    return [_class_table(answer, task, place, cells) for (task, place), cells in _cells(answer).items()]


def confusion_tables(answer: StudyAnswer) -> list[Table]:
    """For each of them and each method, what items of each class were taken for."""
    return [
        _confusion_table(answer, task, label, records)
        for (task, _), cells in _cells(answer).items()
        for label, records in cells.items()
    ]


def _cells(answer: StudyAnswer) -> dict[tuple[str, Place], dict[str, list[Record]]]:
    """By task and place, the records of each method's chosen setting, where the classes are the same."""
    cells: dict[tuple[str, Place], dict[str, list[Record]]] = {}
    for choice in answer.choices:
        for i in choice.index:
            record = answer.rows.records[i]
            for task in record.classes:
                cells.setdefault((task, choice.place), {}).setdefault(choice.label, []).append(record)
    return cells


def _class_table(answer: StudyAnswer, task: str, place: Place, cells: dict[str, list[Record]]) -> Table:
    scores = {label: [ClassScores(record.classes[task]) for record in records] for label, records in cells.items()}
    first = next(iter(scores.values()))[0]
    labels = first.counts.labels
    same = {label: own for label, own in scores.items() if own[0].items == first.items}
    rows = [_row(f"always {first.majority_label}", [first.majority]), *(_row(name, own) for name, own in same.items())]
    where = [part for part, column in zip(place, zip(*answer.places, strict=True), strict=True) if len({*column}) > 1]
    return Table(
        title=f"{title(answer.rows)}: classes of {task_label(task)}" + (f" ({', '.join(where)})" if where else ""),
        columns=["Method", "Accuracy (%)", "Macro-F1 (%)", *_headers(labels, first.items)],
        rows=rows,
        caption=list(_caption(first, same, several_seeds(row for row in answer.settled if row))),
        data=None,
    )


def _headers(labels: Sequence[str], items: Sequence[int]) -> list[str]:
    return [f"{label} (n = {n}): F1, recall" for label, n in zip(labels, items, strict=True)]


def _row(label: str, scores: Sequence[ClassScores]) -> list[str]:
    by_class = zip(*(zip(own.f1, own.recall, strict=True) for own in scores), strict=True)
    return [
        label,
        f"{100 * fmean(own.accuracy for own in scores):.1f}",
        f"{100 * fmean(own.macro_f1 for own in scores):.1f}",
        *(", ".join(map(_mean, zip(*pairs, strict=True))) for pairs in by_class),
    ]


def _mean(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{100 * fmean(numbers):.0f}" if numbers else ABSENT


def _caption(first: ClassScores, scores: dict[str, list[ClassScores]], seeds: bool) -> Iterator[str]:
    yield (
        f"always {first.majority_label}: a model that gives each item the most frequent label of the training part. "
        "Macro-F1 is the mean of F1 over the classes with test items."
    )
    if seeds:
        yield "F1 and recall are means over seeds."
    names = first.counts.labels
    if untested := [name for name, n in zip(names, first.items, strict=True) if not n]:
        yield f"No test item is of the class {units.listed(untested)}: no score says how well it is recognised."
    missed = [
        name
        for i, name in enumerate(names)
        if first.items[i] and all(own.recall[i] == 0 for each in scores.values() for own in each)
    ]
    if missed:
        yield f"No model recognises any item of the class {units.listed(missed)}."


def _confusion_table(answer: StudyAnswer, task: str, label: str, records: Sequence[Record]) -> Table:
    labels = records[0].classes[task].labels
    total = np.sum([record.classes[task].counts for record in records], axis=0)
    columns = [*labels, *(["(no label)"] if total[:, -1].any() else [])]
    return Table(
        title=f"{title(answer.rows)}: what {label} took the items of {task_label(task)} for",
        columns=["True label", *columns],
        rows=[[name, *map(str, row[: len(columns)])] for name, row in zip(labels, total.tolist(), strict=True)],
        caption=[f"Rows are true labels, columns answers{' of all seeds' * (len(records) > 1)}."],
        data=None,
        text_columns=["True label"],
    )
