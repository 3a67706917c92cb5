"""Sequences in rows: many in one without padding, each attending to a prefix that it shares and to itself.

A row reaches the device by one copy of integers. What a model needs besides, masks among it, is computed there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from harness.job.training.attention import SequenceRow, SharedKeys, with_lengths

CALL = 32  # tokens that cost about as much as one more call

Tokens = tuple[int, ...]


@dataclass
class Segment:
    """Tokens of a row that attend to the cached prefix, to segment `parent` of the row, and to themselves.

    start: position of the first token in its sequence. wanted: number of last tokens whose logits are needed.
    """

    tokens: Tokens
    start: int
    wanted: int
    parent: int | None = None


@dataclass
class TokenRow:
    """Segments of sequences, in order.

    members: the sequences whose logits are wanted. prefix: tokens that all segments attend to besides; they are no part
    of the row.
    """

    segments: list[Segment]
    members: list[int]
    prefix: Tokens = ()


def grouped(stems: list[Tokens]) -> list[tuple[int, list[int]]]:
    """Group `stems` by common prefixes. Returns the prefix length and the indices of each group, longest stems first.

    A group is not split if sharing its prefix saves more tokens than all groups that it could be split into.
    """

    def divided(members: list[int]) -> tuple[int, list[tuple[int, list[int]]]]:
        if len(members) == 1:
            return 0, [(0, members)]
        first, last = stems[members[0]], stems[members[-1]]  # sorted, so these two differ the most
        depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        whole = depth * (len(members) - 1) - CALL, [(depth, members)]
        parts = [list(part) for _, part in itertools.groupby(members, lambda m: stems[m][depth : depth + 1])]
        if len(parts) == 1:
            return whole
        saved, groups = zip(*map(divided, parts), strict=True)
        return max(whole, (sum(saved), [group for part in groups for group in part]), key=lambda option: option[0])

    _, groups = divided(sorted(range(len(stems)), key=stems.__getitem__))
    ordered = [(shared, sorted(members, key=lambda m: -len(stems[m]))) for shared, members in groups]
    return sorted(ordered, key=lambda group: -len(stems[group[1][0]]))


def packed(sequences: list[Tokens], wanted: list[int], room: int) -> Iterator[TokenRow]:
    """Rows of at most `room` tokens that hold all `sequences`, of whose last `wanted` tokens the logits are needed.

    A group that fits a row has its prefix in the row; the prefix of a larger one is the row's.
    """
    row = TokenRow([], [])
    for shared, group in grouped([s[: len(s) - n] for s, n in zip(sequences, wanted, strict=True)]):
        head = sequences[group[0]][:shared]
        whole = shared + sum(len(sequences[m]) - shared for m in group)
        if row.segments and size(row.segments) + whole > room:
            yield row
            row = TokenRow([], [])
        parent, apart = None, bool(shared) and whole > room
        if apart:
            row = TokenRow([], [], head)
        elif shared:
            parent = len(row.segments)
            row.segments.append(Segment(head, 0, 0))
        for member in group:
            if row.segments and size(row.segments) + len(sequences[member]) - shared > room:
                yield row
                row = TokenRow([], [], row.prefix)
            row.members.append(member)
            row.segments.append(Segment(sequences[member][shared:], shared, wanted[member], parent))
        if apart:
            yield row
            row = TokenRow([], [])
    if row.segments:
        yield row


def size(segments: list[Segment]) -> int:
    """Tokens of `segments`."""
    return sum(len(segment.tokens) for segment in segments)


@dataclass(frozen=True)
class PlacedRow:
    """A row's tensors on a device, in integers.

    ids, positions: (1, tokens). keep: indices of the wanted positions. own, parent: of each token its segment, and the
    segment that it attends to besides, (tokens,). lengths: tokens of each segment. bounds: begins and ends of the
    segments, (segments + 1,).
    children: tokens of segments with parents, and the parents' tokens. extra: what else came with the row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    keep: torch.Tensor
    own: torch.Tensor
    parent: torch.Tensor
    lengths: tuple[int, ...]
    bounds: torch.Tensor
    children: SharedKeys
    extra: list[torch.Tensor]

    def mask(self, before: int) -> torch.Tensor:
        """Which keys each token attends to, after `before` of a prefix that all attend to: (1, 1, tokens, keys)."""
        pairs = (self.own[:, None] == self.own) | (self.parent[:, None] == self.own)
        return torch.nn.functional.pad(pairs.tril(), (before, 0), value=True)[None, None]

    def sequences(self, before: int) -> SequenceRow:
        """How CUDA's kernels keep the segments apart, after `before` tokens of a prefix; it, or parents, not both."""
        lengths = self.lengths
        shared = self.children if len(self.children.key_bounds) > 1 else None
        if before:
            ends = torch.arange(2, dtype=torch.int32, device=self.bounds.device)
            shared = SharedKeys(None, None, *(with_lengths(ends * n, [n]) for n in (sum(lengths), before)))
        return SequenceRow(lengths, before, self.bounds, shared)


def placed(segments: list[Segment], device: torch.device, *extra: Sequence[int]) -> PlacedRow:
    """The tensors of `segments` on `device`."""
    lengths, wanted = [len(segment.tokens) for segment in segments], [segment.wanted for segment in segments]
    parents = [i if segment.parent is None else segment.parent for i, segment in enumerate(segments)]
    begins = [0, *itertools.accumulate(lengths)]
    groups = [  # a parent, and the segments after it that attend to it
        (parent, list(members))
        for parent, members in itertools.groupby(
            [i for i, parent in enumerate(parents) if i != parent], key=parents.__getitem__
        )
    ]
    queries = [[t for i in members for t in range(begins[i], begins[i + 1])] for _, members in groups]
    keys = [range(begins[parent], begins[parent + 1]) for parent, _ in groups]
    ids, starts, wants, ends, of, query, key, query_ends, key_ends, *more = uploaded(
        [
            list(itertools.chain.from_iterable(segment.tokens for segment in segments)),
            [segment.start for segment in segments],
            wanted,
            begins,
            parents,
            *(list(itertools.chain.from_iterable(spans)) for spans in (queries, keys)),
            *([0, *itertools.accumulate(map(len, spans))] for spans in (queries, keys)),
            *extra,
        ],
        device,
    )
    # The sizes are given: a device would be waited for to learn them.
    numbers = torch.arange(len(segments), device=device)
    own = numbers.repeat_interleave(ends.diff(), output_size=begins[-1])
    segment_of_wanted = numbers.repeat_interleave(wants, output_size=sum(wanted))
    return PlacedRow(
        ids[None],
        (torch.arange(begins[-1], device=device) + (starts - ends[:-1])[own])[None],
        torch.arange(sum(wanted), device=device) + (ends[1:] - wants.cumsum(0))[segment_of_wanted],
        own,
        of[own],
        tuple(lengths),
        with_lengths(ends.int(), lengths),
        SharedKeys(
            query, key, with_lengths(query_ends.int(), map(len, queries)), with_lengths(key_ends.int(), map(len, keys))
        ),
        more,
    )


def uploaded(lists: Sequence[Sequence[int]], device: torch.device) -> list[torch.Tensor]:
    """Each of `lists` on `device`, as int64: by one copy, which nothing waits for."""
    values = torch.tensor(list(itertools.chain.from_iterable(lists)))
    if device.type == "cuda":
        values = values.pin_memory().to(device, non_blocking=True)
    return list(values.split(list(map(len, lists))))
