"""Counts the requests of a scoring that lose their beginning, as a model has no room for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)


class CutRequests:
    """requests: those that were cut so far."""

    def __init__(self) -> None:
        self.requests = 0

    def count(self, lengths: Iterable[int], most: int) -> None:
        """Count the requests of these `lengths` that are longer than the `most` tokens that a model has room for."""
        if cut := sum(length > most for length in lengths):
            self.requests += cut
            logger.warning(f"{cut} requests were truncated on the left to {most} tokens, which the model has room for.")
