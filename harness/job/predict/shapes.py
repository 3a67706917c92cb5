"""The shapes of a cell's largest batches, from its data or assumed."""

from __future__ import annotations

from dataclasses import dataclass

from harness.job.data import batching, encoding
from harness.job.data.batching import Batch
from harness.settings import TrainSettings


@dataclass(frozen=True)
class Shape:
    """The micro-batches of the largest step: of each sequence the number of its tokens, and of its prompt's tokens.

    With several devices, those of the device with the largest share.

    steps: of the training; None if they depend on data that is not here. raw: tokens of the whole training without
    padding, for its time. real: from the data, not assumed.
    """

    micro: list[list[tuple[int, int]]]
    steps: int | None
    raw: int
    padded: int
    real: bool

    @property
    def sequences(self) -> int:
        """Sequences of the largest micro-batch."""
        return max(map(len, self.micro))

    def batches(self, layout: batching.Layout, times: int) -> list[Batch]:
        """Micro-batches of this shape, `times` as large, of tokens 0; of more than two only the two largest."""
        sized = [[encoding.Example([0] * n, prompt) for n, prompt in batch] * times for batch in self.micro]
        if len(sized) > 2:
            sized = sorted(sized, key=layout.tokens)[-2:]
        return [layout.batch(examples) for examples in sized]


def assumed_shape(train: TrainSettings, size: int) -> Shape:
    length, step = train.max_length, train.micro_batch * (train.grad_accum or 1)
    tokens = step * length * (train.max_steps or 1)
    tokens = min(tokens, train.max_tokens or tokens)
    share = -(-step // (size * train.total_devices))
    return Shape([[(length, 0)] * size] * share, train.max_steps, raw=tokens, padded=tokens, real=False)


def even_parts(step: int, devices: int) -> list[int]:
    """Sizes of micro-batches, largest first, that split a step evenly, with as many for each device."""
    sizes = {-(-step // (devices * count)) for count in range(1, step // devices + 1)}
    return sorted((size for size in sizes if -(-step // size) % devices == 0), reverse=True)
