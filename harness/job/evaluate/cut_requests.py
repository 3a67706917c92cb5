"""Counts the requests of a scoring that lose their beginning, and the answers that lose their end, for want of room."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)


class CutRequests:
    """requests: those that were cut so far. answers: written so far. unfinished: those that ended at their limit."""

    def __init__(self) -> None:
        self.requests = self.answers = self.unfinished = 0

    def count(self, lengths: Iterable[int], most: int) -> None:
        """Count the requests of these `lengths` that are longer than the `most` tokens that a model has room for."""
        if cut := sum(length > most for length in lengths):
            self.requests += cut
            logger.warning(f"{cut} requests were truncated on the left to {most} tokens, which the model has room for.")

    def count_answer(self, finished: bool) -> None:
        """Count a written answer. finished: whether it ended by itself, or at a text that ends it."""
        self.answers += 1
        self.unfinished += not finished
