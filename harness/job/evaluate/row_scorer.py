"""Log-likelihoods of continuations, computed in rows that share prefixes.

Results stay on the device until those of many rows are read at once: the device is waited for to read them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from harness.job.evaluate import rows
from harness.job.evaluate.row_model import RowModel, SharedPrefix
from harness.job.evaluate.rows import TokenRow, Tokens
from harness.job.evaluate.tokenised_once import Request

LogLikelihood = tuple[float, bool]  # the sum of log-probabilities in nats, and whether each token is the likeliest


@dataclass
class Targets:
    """The tokens whose log-probabilities a row gives, continuation by continuation.

    requests: the index of each continuation's request. lengths: its tokens. places: of each token, where its logits are
    among those of the row.
    """

    requests: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def add(self, request: int, continuation: list[int], end: int) -> None:
        """Add the continuation whose logits end before the place `end`."""
        self.requests.append(request)
        self.lengths.append(len(continuation))
        self.tokens += continuation
        self.places += range(end - len(continuation), end)


class RequestedSequences:
    """The sequences that requests are about, at most `max_length` tokens of each; the last token needs no pass.

    Choices that differ in their last token only are one sequence.
    """

    def __init__(self, requests: list[Request], max_length: int):
        self._continuations = [continuation for _, _, continuation in requests]
        self._requests: dict[Tokens, list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            self._requests[tuple((context + continuation)[-(max_length + 1) :][:-1])].append(index)

    @property
    def tokens(self) -> Collection[Tokens]:
        return self._requests.keys()

    def packed(self, answered: Collection[int], room: int) -> Iterator[tuple[TokenRow, Targets]]:
        """Rows of at most `room` tokens with the sequences of requests that are not `answered`, and their targets."""
        left = [sequence for sequence, indices in self._requests.items() if indices[0] not in answered]
        wanted = [max(len(self._continuations[index]) for index in self._requests[sequence]) for sequence in left]
        for row in rows.packed(left, wanted, room):
            targets = Targets()
            ends = itertools.accumulate(wanted[member] for member in row.members)
            for member, end in zip(row.members, ends, strict=True):
                for index in self._requests[left[member]]:
                    targets.add(index, self._continuations[index], end)
            yield row, targets


class UnreadResults:
    """Results of rows that are still on the device."""

    def __init__(self) -> None:
        self._requests: list[int] = []
        self._lengths: list[int] = []
        self._log_probabilities: list[torch.Tensor] = []
        self._greedy: list[torch.Tensor] = []

    def add(self, targets: Targets, logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add the results of a row. logits: (places, vocabulary). places, tokens: those of `targets` on the device."""
        self._requests += targets.requests
        self._lengths += targets.lengths
        log_probabilities = functional.log_softmax(logits.float(), dim=-1)
        self._log_probabilities.append(log_probabilities[places, tokens])
        self._greedy.append(log_probabilities.argmax(dim=-1)[places] == tokens)

    def read(self) -> Iterator[tuple[int, LogLikelihood]]:
        """The index of each request and its answer."""
        both = (torch.cat(parts).cpu().split(self._lengths) for parts in (self._log_probabilities, self._greedy))
        for index, log_probabilities, greedy in zip(self._requests, *both, strict=True):
            yield index, (float(log_probabilities.sum()), bool(greedy.all()))


class RowScorer:
    """Scores `sequences` by `model`. `keep` gets the answers, those of `unread` rows at a time.

    row: the one that was computed last.
    """

    def __init__(
        self,
        model: RowModel,
        sequences: RequestedSequences,
        unread: int,
        keep: Callable[[Iterator[tuple[int, LogLikelihood]]], Any],
    ):
        self._model, self._sequences, self._unread, self._keep = model, sequences, unread, keep
        self.row = TokenRow([], [])

    def score(self, answered: Collection[int], room: int) -> None:
        """Score what is not `answered`, in rows of at most `room` tokens."""
        # Of this call alone: after a shortage of memory nothing holds them.
        prefix, results, count = SharedPrefix(self._model), UnreadResults(), 0
        for row, targets in self._sequences.packed(answered, room):
            self.row = row
            cache = prefix.cache(row.prefix)
            logits, _, on_device = self._model.forward(row.segments, cache, targets.places, targets.tokens)
            results.add(targets, logits, *on_device)
            count += 1
            if count == self._unread:
                self._keep(results.read())
                results, count = UnreadResults(), 0
        if count:
            self._keep(results.read())
