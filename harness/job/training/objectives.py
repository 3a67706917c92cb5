"""Objectives of pairs of answers to one prompt, of which one was preferred: DPO and ORPO.

A batch holds both sequences of each pair, so a step is one forward and one backward pass. The model that DPO refers to
is the base as it was loaded. Its log-probabilities are taken once, before the method changes the model: so they are
the same for every method (of some, to switch off the adapters would not give the base back), and training keeps no
second model.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from harness.errors import UserError
from harness.job.data.batching import Batch, Layout
from harness.job.data.encoding import IGNORED, Pair
from harness.job.training import attention, loss
from harness.job.training.loop import ANSWERS, AnyObjective, Objective, answer_logits
from harness.settings import TrainSettings

CERTAIN = -1e-7  # log-probability above which the odds would be infinite


@dataclass(frozen=True)
class PairBatch(Batch):
    """Pairs as a batch: of each the chosen sequence, then the rejected one.

    kept: of each sequence, how many of the positions `keep` are its own. answers: (pairs, 2) tokens with loss.
    reference: (pairs, 2) log-probabilities in nats of the answers under the base; (0, 2) where none are needed.
    """

    kept: tuple[int, ...]
    answers: Tensor
    reference: Tensor


class PairObjective(Objective[Pair, PairBatch]):
    """An objective of pairs, a mean over them.

    beta: the weight of the preference. reference: by a pair's identity, log-probabilities in nats of both of its
    answers under the base; `refer_to` fills it.
    """

    by_token = True

    def __init__(self, beta: float, reference: dict[int, tuple[float, float]]):
        self.beta, self.reference = beta, reference

    def batch(self, layout: Layout, drawn: list[Pair]) -> PairBatch:
        batch, sequences = layout.batch([*drawn]), [each for pair in drawn for each in pair.sequences]
        answers = [len(each.supervised) for each in sequences]
        if batch.lengths is None:
            kept = [len(batch.keep)] * len(sequences)
        else:
            kept = [len(each.ids) - 1 for each in sequences] if layout.every else answers
        return PairBatch(
            **vars(batch),
            kept=tuple(kept),
            answers=torch.tensor(answers).view(-1, 2),
            reference=self._reference(drawn),
        )

    def _reference(self, drawn: list[Pair]) -> Tensor:
        return torch.empty(0, 2)

    def refer_to(
        self, base: nn.Module, pairs: Iterable[Pair], size: int, layout: Layout, accelerator: Accelerator
    ) -> None:
        """Take what the objective needs of `base` on `pairs`, `size` pairs at a time. This one needs nothing."""

    def summed(self, model: nn.Module, batch: PairBatch) -> Tensor:
        return self.losses(log_probabilities(model, batch), batch).sum()

    def weight(self, batch: PairBatch) -> int:
        """How many terms the loss of `batch` sums: pairs."""
        return len(batch.answers)

    @abstractmethod
    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        """The loss of each pair, (pairs,), of the log-probabilities `logs` (pairs, 2) of its answers."""

    @abstractmethod
    def rewards(self, logs: Tensor, batch: PairBatch) -> Tensor:
        """The implicit rewards of the answers, (pairs, 2), of their log-probabilities `logs`."""


class DirectPreference(PairObjective):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7), with the sigmoid loss.

    The implicit reward of an answer is beta times the logarithm of its probability's ratio to the base's.
    """

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        chosen, rejected = self.rewards(logs, batch).unbind(1)
        return -logsigmoid(chosen - rejected)

    def rewards(self, logs: Tensor, batch: PairBatch) -> Tensor:
        return self.beta * (logs - batch.reference)

    def of_a_guess(self, vocabulary: int) -> float:
        """Infinite: the loss begins at that of a coin, ln 2, so no end is told from a guess."""
        return math.inf

    def _reference(self, drawn: list[Pair]) -> Tensor:
        return torch.tensor([self.reference[id(pair)] for pair in drawn])

    def refer_to(
        self, base: nn.Module, pairs: Iterable[Pair], size: int, layout: Layout, accelerator: Accelerator
    ) -> None:
        batches = by_length(pairs, size)
        self.reference |= {id(pair): (0.0, 0.0) for some in batches for pair in some}  # a batch has a place for them
        base.eval()
        with torch.no_grad(), accelerator.autocast(), ExitStack() as stack:
            if layout.flat:
                stack.enter_context(attention.enabled(base))
            if not layout.every:  # else speed-ups are off
                stack.enter_context(loss.enabled(base))
            for some in batches:
                logs = log_probabilities(base, self.batch(layout, some).to(accelerator.device))
                self.reference |= {id(pair): tuple(both) for pair, both in zip(some, logs.tolist(), strict=True)}


class OddsRatio(PairObjective):
    """ORPO (Hong et al. 2024, arXiv:2403.07691, equations 3 to 7): cross-entropy of the chosen answer, and beta (lambda
    in the article) times the loss of its odds against those of the rejected one.

    An answer's probability is the geometric mean of its tokens'. As in TRL, its reward is beta times the logarithm.
    """

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        chosen, rejected = (logs / batch.answers).unbind(1)
        odds = chosen - rejected - log_complement(chosen) + log_complement(rejected)
        return -chosen - self.beta * logsigmoid(odds)

    def rewards(self, logs: Tensor, batch: PairBatch) -> Tensor:
        return self.beta * logs / batch.answers

    def of_a_guess(self, vocabulary: int) -> float:
        """A guess gives both answers the same odds."""
        return math.log(vocabulary) + self.beta * math.log(2)


def of(train: TrainSettings, valued: bool = True) -> AnyObjective:
    """The objective of the settings `train`. valued: False for a prediction, which has no values of the base."""
    return pairwise(train, valued) if train.paired else ANSWERS


def pairwise(train: TrainSettings, valued: bool = True) -> PairObjective:
    """The objective of pairs of the settings `train`. Raises UserError if they have none, or lack its beta."""
    kinds: dict[str, type[PairObjective]] = {"dpo": DirectPreference, "orpo": OddsRatio}
    if train.objective not in kinds or train.preference_beta is None:
        raise UserError(f"train.objective={train.objective} requires train.preference_beta, the preference's weight.")
    none: dict[int, tuple[float, float]] = {} if valued else defaultdict(lambda: (0.0, 0.0))
    return kinds[train.objective](train.preference_beta, none)


def by_length(pairs: Iterable[Pair], size: int) -> list[list[Pair]]:
    """Each of `pairs` once, the short ones first, in batches of `size`: what the base is asked of."""
    waiting = sorted({id(pair): pair for pair in pairs}.values(), key=lambda pair: len(pair.ids))
    return [waiting[i : i + size] for i in range(0, len(waiting), size)]


def log_probabilities(model: nn.Module, batch: PairBatch) -> Tensor:
    """The log-probabilities in nats of the answers of `batch`, in fp32: (pairs, 2)."""
    with loss.at_head(model, batch.targets) as taken:
        losses = answer_logits(model, batch)
    if not taken:
        targets = batch.targets.flatten()
        losses = cross_entropy(losses.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="none")
    return -torch.stack([part.sum() for part in losses.split(batch.kept)]).view(-1, 2)


def log_complement(logs: Tensor) -> Tensor:
    """log(1 - p) of the probabilities whose logarithms are `logs`, without cancellation (Mächler 2012)."""
    logs = logs.clamp(max=CERTAIN)
    near_one = logs > -math.log(2)
    return torch.where(near_one, torch.log(-torch.expm1(logs)), torch.log1p(-torch.exp(logs)))
