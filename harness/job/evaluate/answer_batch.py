"""How many sequences are answered at a time: `eval.batch_size`, where `auto` is as many as the device has room for."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

from harness.job import shortage
from harness.job.measure.device_memory import free
from harness.settings import AUTO

FIXED = 16  # what `auto` is on a CPU, where more sequences bring no speed, and without speed-ups
SHARE = 0.8  # of the free memory; layers' own tensors take some of the rest

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AnswerBatch:
    """The number of sequences that are answered at a time.

    chooses: whether that many are taken as fit the device. tell: called with each number that is used.
    """

    def __init__(
        self, batch_size: int | Literal["auto"], device: torch.device, tell: Callable[[int], Any] = lambda size: None
    ):
        self._device, self._tell = device, tell
        self.chooses = batch_size == AUTO and device.type == "cuda"
        self.size = FIXED if batch_size == AUTO else batch_size

    def fit(self, each: int, most: int) -> None:
        """Take as many sequences of `each` bytes as fit the device, at most `most`."""
        self.size = max(1, min(most, int(SHARE * free(self._device)) // each))

    def use_fixed(self) -> None:
        """Choose nothing from here on."""
        self.chooses = False
        self._tell(self.size)

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns; where the number is chosen here, `work` is called again with half after a shortage."""

        def told() -> T:
            self._tell(self.size)
            return work()

        return until_it_fits(told, self._halve)

    def _halve(self) -> bool:
        if not self.chooses or self.size == 1:
            return False
        self.size = -(-self.size // 2)
        logger.warning(f"Memory ran out; answering {self.size} sequences at a time.")
        return True


def until_it_fits(work: Callable[[], T], reduce: Callable[[], bool]) -> T:
    """What `work` returns. After a shortage of memory it is called again, if `reduce` has made it smaller."""
    while True:
        try:
            return work()
        except Exception as error:
            if not shortage.of_memory(error) or not reduce():
                raise
        gc.collect()
        torch.cuda.empty_cache()
