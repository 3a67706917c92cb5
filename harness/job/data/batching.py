"""Puts tokenised examples into the micro-batches of each step, in an order equal for every method."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from harness.errors import UserError
from harness.job.data.columns import Item
from harness.job.data.encoding import IGNORED, Compared, Drawn, Encoder, Example
from harness.settings import TrainSettings, TunedTrain

MOST_DRAWN = 10**7  # sequences of a whole training: all are drawn before its first step


def batches(items: int, batch_size: int, count: int, seed: int) -> Iterator[list[int]]:
    """`count` batches of indices below `items`: shuffled passes in a row, cut into batches across their borders."""
    shuffle = random.Random(f"batches {seed}")
    waiting: list[int] = []
    for _ in range(count):
        while len(waiting) < batch_size:
            waiting += shuffle.sample(range(items), items)
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def bucketed(batches: list[list[Drawn]], together: int, seed: int) -> list[list[Drawn]]:
    """Regroup examples by length: every `together` batches are sorted by length, cut into batches, and shuffled."""
    shuffle = random.Random(f"buckets {seed}")
    out: list[list[Drawn]] = []
    for start in range(0, len(batches), together):
        group = batches[start : start + together]
        by_length = iter(sorted((e for batch in group for e in batch), key=lambda e: len(e.ids)))
        out += shuffle.sample([[next(by_length) for _ in batch] for batch in group], len(group))
    return out


def scheduled(items: list[Item], train: TunedTrain, seed: int | None, encode: Encoder) -> list[list[list[Drawn]]]:
    """The examples of each step's micro-batches, by the settings `train`: the same for every method.

    Only drawn items are encoded: most of a large data set is not. With `epochs` the last step is the one that ends the
    last pass; with `max_tokens`, the one that reaches that number of raw tokens.

    seed: of the order, unless `train` has one for that. Raises UserError if `max_tokens` is not reached, for more than
    MOST_DRAWN sequences, or without a seed, or a number of steps or epochs.
    """
    if not items:
        raise UserError("Training has no example; check the data, and sizes such as data.load.train.")
    seed = seed if train.data_seed is None else train.data_seed
    if seed is None:
        raise UserError("Training requires a seed, or train.data_seed.")
    size, accum = train.micro_batch, train.grad_accum
    wanted = None if train.epochs is None else math.ceil(train.epochs * len(items))  # examples of all passes
    _check_drawn(train, wanted or _step_limit(train) * size * accum)
    if train.packing:
        passes = itertools.chain.from_iterable(batches(len(items), len(items), sys.maxsize, seed))
        packs = packed((example for index in passes for example in encode([items[index]])), train.max_length)
        endless = ([[e for _ in range(size) for e in next(packs)] for _ in range(accum)] for _ in itertools.count())
        steps = list(_until(endless, wanted, len) if wanted else itertools.islice(endless, train.max_steps))
    else:
        count = math.ceil(wanted / (size * accum)) if wanted else _step_limit(train)
        order = list(batches(len(items), size, count * accum, seed))
        indices = sorted({i for batch in order for i in batch})
        examples = dict(zip(indices, encode([items[i] for i in indices]), strict=True))
        micro = bucketed([[examples[i] for i in batch] for batch in order], train.bucketing, seed)
        steps = [micro[i : i + accum] for i in range(0, len(micro), accum)]
    if train.max_tokens is not None:
        steps = list(_until(steps, train.max_tokens, lambda batch: sum(len(e.ids) for e in batch)))
        if sum(len(e.ids) for step in steps for batch in step for e in batch) < train.max_tokens:
            planned = f"train.max_steps={train.max_steps}" if wanted is None else f"train.epochs={train.epochs:g}"
            raise UserError(f"train.max_tokens={train.max_tokens} is not reached with {planned}; raise that.")
    return steps if train.loss_on == "answers" else [[[_whole(e) for e in batch] for batch in step] for step in steps]


def _check_drawn(train: TunedTrain, sequences: int) -> None:
    if sequences > MOST_DRAWN:
        length = f"train.epochs={train.epochs:g}" if train.max_steps is None else f"train.max_steps={train.max_steps}"
        raise UserError(
            f"Training would take {sequences:,} sequences, and at most {MOST_DRAWN:,} are possible; lower {length} or "
            f"train.batch_size={train.micro_batch}."
        )


def _step_limit(train: TunedTrain) -> int:
    if train.max_steps is None:
        raise UserError("Training requires train.max_steps or train.epochs.")
    return train.max_steps


def _whole(example: Drawn) -> Example:
    """`example` with loss on every token. Raises UserError for answers that are compared."""
    if isinstance(example, Compared):
        raise UserError("train.loss_on=all requires train.objective=sft; other objectives compare answers.")
    return example.whole()


def _until(
    steps: Iterable[list[list[Drawn]]], most: int, count: Callable[[list[Drawn]], int]
) -> Iterator[list[list[Drawn]]]:
    """`steps` up to the one with which `count` of their micro-batches adds up to `most`."""
    reached = 0
    for step in steps:
        yield step
        reached += sum(map(count, step))
        if reached >= most:
            return


def packed(examples: Iterable[Drawn], room: int) -> Iterator[list[Drawn]]:
    """Packs of examples in their order, with at most `room` tokens each; no example is cut."""
    pack: list[Drawn] = []
    tokens = 0
    for example in examples:
        if pack and tokens + len(example.ids) > room:
            yield pack
            pack, tokens = [], 0
        pack.append(example)
        tokens += len(example.ids)
    if pack:
        yield pack


def cut(step: list[list[Drawn]], size: int, room: int | None = None) -> list[list[Drawn]]:
    """Cut a step's micro-batches into micro-batches of at most `size` examples, in their order.

    room: tokens of a pack, if the examples were packed; then `size` counts packs.
    """
    out: list[list[Drawn]] = []
    for batch in step:
        packs = [[example] for example in batch] if room is None else list(packed(batch, room))
        out += [[e for pack in packs[i : i + size] for e in pack] for i in range(0, len(packs), size)]
    return out


def pieces(steps: list[list[list[Drawn]]], size: int, train: TrainSettings) -> list[list[list[Drawn]]]:
    """The micro-batches of each of `steps`, scheduled by the settings `train`, as a device takes them.

    Each has at most `size` sequences, or packs if they are packed.
    """
    room = train.max_length if train.packing else None
    return [cut(step, size, room) for step in steps]


@dataclass(frozen=True)
class Batch:
    """Examples as tensors, and the counts of their tokens.

    Padded: rows [sequences, longest] with an attention mask. Flat: one row [1, tokens] of sequences of the lengths
    `lengths`, end to end, whose position ids restart at each; a sequence must attend to itself only.

    keep: (k,) positions whose logits the loss needs. targets: (rows, k) the token after each, or IGNORED.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    lengths: tuple[int, ...] | None
    keep: torch.Tensor
    targets: torch.Tensor
    raw: int
    padded: int
    supervised: int

    def to(self, device: torch.device) -> Self:
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)

    @property
    def tokens(self) -> torch.Tensor:
        """The token ids without padding, sequence after sequence: the same in both layouts."""
        return self.input_ids.flatten() if self.attention_mask is None else self.input_ids[self.attention_mask.bool()]


def _sequences(examples: Iterable[Drawn]) -> list[Example]:
    return [sequence for one in examples for sequence in one.sequences]


@dataclass(frozen=True)
class Layout:
    """How examples become a batch: flat, or padded with the token `pad`, which has neither attention nor loss.

    every: whether logits are computed at every position, as in plain loops, or only before supervised tokens.
    Tokens are counted on the host, so that no step waits for a count.
    """

    flat: bool
    every: bool = False
    pad: int = 0

    def tokens(self, examples: Sequence[Drawn]) -> int:
        """Tokens of a batch of `examples`, padding included."""
        lengths = [len(e.ids) for e in _sequences(examples)]
        return sum(lengths) if self.flat else len(lengths) * max(lengths)

    def batch(self, batch: Sequence[Drawn]) -> Batch:
        examples = _sequences(batch)
        wanted = [e.supervised for e in examples]
        counts = (sum(len(e.ids) for e in examples), self.tokens(batch), sum(map(len, wanted)))
        return (self._flat if self.flat else self._padded)(examples, wanted, counts)

    def _flat(self, examples: list[Example], wanted: list[list[int]], counts: tuple[int, int, int]) -> Batch:
        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        targets: list[int] = []
        for e, places in zip(examples, wanted, strict=True):
            bear = set(places)
            bearing = range(len(e.ids) - 1) if self.every else [place - 1 for place in places]
            keep += [len(ids) + place for place in bearing]
            targets += [e.ids[place + 1] if place + 1 in bear else IGNORED for place in bearing]
            ids += e.ids
            positions += range(len(e.ids))
        lengths = tuple(len(e.ids) for e in examples)
        row, position_ids, places_kept, wanted_ids = map(torch.tensor, ([ids], [positions], keep, [targets]))
        return Batch(row, None, position_ids, lengths, places_kept, wanted_ids, *counts)

    def _padded(self, examples: list[Example], wanted: list[list[int]], counts: tuple[int, int, int]) -> Batch:
        longest = max(len(e.ids) for e in examples)
        first = min((place for places in wanted for place in places[:1]), default=longest)
        bearing = range(0 if self.every else first - 1, longest - 1)
        ids, mask, targets = [], [], []
        for e, places in zip(examples, wanted, strict=True):
            rest, bear = longest - len(e.ids), set(places)
            ids.append(e.ids + [self.pad] * rest)
            mask.append([1] * len(e.ids) + [0] * rest)
            targets.append([e.ids[place + 1] if place + 1 in bear else IGNORED for place in bearing])
        rows, attended, keep, wanted_ids = map(torch.tensor, (ids, mask, list(bearing), targets))
        return Batch(rows, attended, None, None, keep, wanted_ids, *counts)
