"""What ends a running cell for a known reason: its record has the status and the sentence, its log has no trace."""

from __future__ import annotations

from typing import ClassVar

from harness.record import Status


class CellEnded(Exception):
    """The message is a sentence that says why. step: of the training that ended; None if it ended elsewhere."""

    status: ClassVar[Status] = "failed"

    def __init__(self, reason: str, step: int | None = None):
        super().__init__(reason)
        self.step = step
