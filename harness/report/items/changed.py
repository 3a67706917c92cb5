"""The items that tuning lost and won, and the answers to them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.report.items.answered import AnsweredItems


@dataclass(frozen=True)
class Changed:
    """An item that the model of some seed lost or won: the target, and the answers of base and seeds."""

    subject: str | None
    item: int
    kind: str  # lost or won
    seeds: int  # number of models that lost or won it
    target: str
    base: str
    tuned: list[str]


class ChangedItems(Sequence[Changed]):
    """The lost items, then the won ones, each by the number of seeds; their texts are read when they are asked for."""

    def __init__(self, metric: str, base: AnsweredItems, tuned: Sequence[AnsweredItems]):
        self._metric, self._base, self._tuned = metric, base, tuned
        before = base.values
        self._at: dict[str, np.ndarray] = {}
        self._seeds: dict[str, np.ndarray] = {}
        for kind, moved in (("lost", np.less), ("won", np.greater)):
            seeds = np.sum([moved(of.values, before) for of in tuned], axis=0)
            at = np.flatnonzero(seeds)
            self._at[kind] = at[np.argsort(-seeds[at], kind="stable")]
            self._seeds[kind] = seeds[self._at[kind]]

    def __len__(self) -> int:
        return sum(map(len, self._at.values()))

    def __getitem__(self, at: Any) -> Any:
        lost = len(self._at["lost"])
        wanted = range(len(self))[at]
        if isinstance(wanted, int):
            return next(self._changed("lost", [wanted]) if wanted < lost else self._changed("won", [wanted - lost]))
        of_lost, of_won = [i for i in wanted if i < lost], [i - lost for i in wanted if i >= lost]
        return [*self._changed("lost", of_lost), *self._changed("won", of_won)]

    def __iter__(self) -> Iterator[Changed]:
        return iter(self[:])

    def first(self, kind: str, most: int) -> list[Changed]:
        """The first ones that were lost, or won."""
        return list(self._changed(kind, range(min(most, len(self._at[kind])))))

    def _changed(self, kind: str, which: Sequence[int]) -> Iterator[Changed]:
        at, seeds = self._at[kind][list(which)], self._seeds[kind][list(which)].tolist()
        subjects, numbers = self._base.subject_of(at), self._base.numbers[at].tolist()
        targets, said = (
            self._base.texts("target", at),
            [of.texts("prediction", at) for of in (self._base, *self._tuned)],
        )
        for i, texts in enumerate(zip(*said, strict=True)):
            base, *others = (answer(text, self._metric) for text in texts)
            yield Changed(subjects[i], numbers[i], kind, seeds[i], targets[i], base, others)


def answer(prediction: str, metric: str) -> str:
    """The answer in a prediction as lm-eval stores it: a text, or the index of the chosen option.

    A dash where the option is chosen by more than the stored log-likelihoods, as by their length in characters.
    """
    try:
        literal = ast.literal_eval(prediction)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return prediction
    if isinstance(literal, list) and len(literal) == 1 and isinstance(literal[0], str):
        return literal[0]
    if isinstance(literal, list) and literal and all(_is_choice(one) for one in literal):
        return str(max(range(len(literal)), key=lambda i: literal[i][0])) if metric == "acc" else "–"
    return prediction


def _is_choice(value: Any) -> bool:
    """Whether `value` is an option's (log-likelihood, is greedy)."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float)
