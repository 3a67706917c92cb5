"""Scores by likelihood: the bits that a text costs the model, a byte, so that models with other tokenizers compare."""

from __future__ import annotations

import math
from typing import Any

from harness.job.data.preferences import GOOD, MARK


def of_answer(doc: dict[str, Any], result: tuple[float, bool]) -> float:
    """The bits per byte of the right answer. result: its log-likelihood, and whether it is the likeliest."""
    log_likelihood, _greedy = result
    return -log_likelihood / math.log(2) / len(doc["answer"].encode())


def of_good_answer(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """The bits per byte of the answer, if it is a good one."""
    return {"bits_per_byte": of_answer(doc, results[0])} if doc[MARK] == GOOD else {}


def of_document(doc: dict[str, Any], results: list[float]) -> dict[str, float]:
    """The bits per byte of one document. results: its log-likelihood."""
    return {"bits_per_byte": -results[0] / math.log(2) / len(doc["text"].encode())}
