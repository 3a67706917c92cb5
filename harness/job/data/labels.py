"""Answers that are labels: one of a few classes, each a short text that many records have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import UserError
from harness.job.data.columns import OPTIONS, Item, answer_of
from harness.job.data.preferences import MARK, REJECTED

MOST_LABELS = 20  # that are recognised as such
RECORDS_EACH = 10  # that a label has on average, at least
SHORT_WORDS, SHORT_CHARACTERS = 5, 40


@dataclass(frozen=True)
class Labels:
    """The labels of a file in alphabetical order, and how many records of its training part have each."""

    texts: tuple[str, ...]
    trained: tuple[int, ...]


def label_of(item: Item) -> str:
    return answer_of(item).strip()


def is_short(answer: str) -> bool:
    return len(answer.split()) <= SHORT_WORDS and len(answer.strip()) <= SHORT_CHARACTERS


def are_labels(items: Sequence[Item], answers: str) -> bool:
    """Whether the answers of `items`, all records of a file, are labels. answers: the setting data.answers.

    Raises UserError for data.answers=classify of data that have options, pairs or marks, or a single label.
    """
    if answers not in ("auto", "classify") or not items:
        return False
    others = [field for field in (OPTIONS, REJECTED, MARK) if field in items[0]]
    labels = {label_of(item) for item in items}
    if answers == "classify":
        if others:
            raise UserError(f"data.answers=classify can't be combined with data.columns.{others[0]}.")
        if len(labels) < 2:
            raise UserError("data.answers=classify requires two or more different answers, which are the labels.")
        return True
    few = 2 <= len(labels) <= MOST_LABELS and len(items) >= RECORDS_EACH * len(labels)
    return few and not others and all(map(is_short, labels))


def labels_of(parts: dict[str, list[Item]]) -> Labels:
    """The labels of all records of the parts of a file."""
    trained = Counter(map(label_of, parts["train"]))
    texts = sorted({label_of(item) for items in parts.values() for item in items})
    return Labels(tuple(texts), tuple(trained[text] for text in texts))
