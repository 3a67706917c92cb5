"""The shapes of a cell's largest batches, from its data or assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.job.data import batching, encoding
from harness.settings import ValidatedTrain


@dataclass(frozen=True)
class Shape:
    """The micro-batches of the largest step: of each sequence the number of its tokens, and of its prompt's tokens.

    With several devices, those of the device with the largest share. paired: whether each two sequences are a pair.
    marked: whether each is a single answer with a mark.

    steps: of the training; None if they depend on data that is not here. raw: tokens of the whole training without
    padding, for its time. real: from the data, not assumed. reference: tokens of the base's pass over all pairs, with
    padding; 0 if the objective refers to no base. lengths: what these tokens rest on: the `data`, `characters` of the
    data where the tokenizer is not here, or `assumed`: each sequence has max_length.
    """

    micro: list[list[tuple[int, int]]]
    steps: int | None
    raw: int
    padded: int
    real: bool
    paired: bool = False
    marked: bool = False
    reference: int = 0
    lengths: Literal["data", "characters", "assumed"] = "data"

    @property
    def sequences(self) -> int:
        """Sequences, or pairs, of the largest micro-batch: what train.batch_size counts."""
        return max(map(len, self.micro)) // (2 if self.paired else 1)

    def drawn(self, layout: batching.Layout, times: int) -> list[list[encoding.Drawn]]:
        """Micro-batches of this shape, `times` as large, of tokens 0; of more than two only the two largest."""
        examples = [[encoding.Example([0] * n, prompt) for n, prompt in batch] * times for batch in self.micro]
        sized: list[list[encoding.Drawn]] = [[*batch] for batch in examples]
        if self.paired:
            both = [zip(batch[::2], batch[1::2], strict=True) for batch in examples]
            sized = [[encoding.Pair(chosen, rejected) for chosen, rejected in pairs] for pairs in both]
        if self.marked:
            sized = [[encoding.MarkedAnswer(example, good=True) for example in batch] for batch in examples]
        return sorted(sized, key=layout.tokens)[-2:] if len(sized) > 2 else sized


def assumed_shape(train: ValidatedTrain, size: int, marked: bool) -> Shape:
    """Of sequences of max_length tokens. marked: whether the data are single answers with marks."""
    paired = train.paired and not marked
    length, step = train.max_length, train.micro_batch * (train.grad_accum or 1)
    tokens = step * length * (train.max_steps or 1)
    tokens = min(tokens, train.max_tokens or tokens)
    share = -(-step // (size * train.total_devices))
    each = 2 if paired else 1
    micro = [[(length, 0)] * size * each] * share
    reference = (tokens + train.validation_items * length) * each if train.refers else 0
    return Shape(micro, train.max_steps, tokens * each, tokens * each, False, paired, marked, reference, "assumed")


def even_parts(step: int, devices: int) -> list[int]:
    """Sizes of micro-batches, largest first, that split a step evenly, with as many for each device."""
    sizes = {-(-step // (devices * count)) for count in range(1, step // devices + 1)}
    return sorted((size for size in sizes if -(-step // size) % devices == 0), reverse=True)
