"""Which score shows what a model learned, by the data set it was tuned on, and which scores show what it forgot."""

from __future__ import annotations

from collections.abc import Iterable

from harness.record import Record
from harness.settings import HELD_OUT

LEARNED = {
    "gsm8k": "gsm8k/exact_match/flexible-extract",
    "metamath": "gsm8k/exact_match/flexible-extract",
    "wordmath": "wordmath/exact_match/flexible-extract",
    "wordmath_short": "wordmath_short/exact_match/flexible-extract",
    "facts": "facts/acc/none",
    "facts_short": "facts_short/acc/none",
}
"""By data set, the score (TASK/METRIC/FILTER) of the task that it trains for."""

MMLU = "mmlu/acc/none"
PLAIN_TEXT = "plain_text/bits_per_byte/none"
FORGOTTEN = (MMLU, PLAIN_TEXT)
"""Scores of tasks that no data set trains for."""


QUANTISED = ("nf4", "int8", "int8wo", "fp8wo")
BASES = {None: "base"} | {name: f"base_{name}" for name in QUANTISED}
"""The untuned models by the format of their weights; None: not quantised."""


def base_of(record: Record) -> str:
    """The untuned model that a cell's method starts from, with weights quantised as the method's are."""
    return BASES.get(record.cell.settings.method.quantisation, BASES["nf4"])  # a format of one's own has 4 bits


def trained_for(data: str) -> str:
    """The task that a data set trains for: its own, else its test part."""
    return LEARNED.get(data, HELD_OUT).partition("/")[0]


def learned(data: str, scores: Iterable[str]) -> str | None:
    """The one of `scores` that shows what was learned of `data`: of its own task, else the first of its test part."""
    scores = list(scores)
    if data in LEARNED:
        return LEARNED[data] if LEARNED[data] in scores else None
    return next((score for score in scores if score.partition("/")[0] == HELD_OUT), None)
