"""Objectives of pairs of answers to one prompt, of which one was preferred: DPO, IPO, KTO, SimPO and ORPO. KTO learns
from single answers that are marked as good or bad, too: an item is then one answer where it is else a pair.

A batch holds both sequences of each pair, so a step is one forward and one backward pass. The model that DPO, IPO and
KTO refer to is the base as it was loaded. Its log-probabilities are taken once, before the method changes the model: so
they are the same for every method (of some, to switch off the adapters would not give the base back), and training
keeps no second model.

Where TRL's trainers have an objective too, the numbers are theirs (tests/job/training/test_objectives_of_trl.py).
"""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, softplus

from harness.errors import UserError
from harness.job.data.batching import Batch, Layout
from harness.job.data.encoding import IGNORED, Compared, Example
from harness.job.training import attention, loss
from harness.job.training.loop import ANSWERS, AnyObjective, Objective, answer_logits
from harness.settings import TrainSettings

CERTAIN = -1e-7  # log-probability above which the odds would be infinite


@dataclass(frozen=True)
class PairBatch(Batch):
    """Pairs as a batch: of each the chosen sequence, then the rejected one; or single answers.

    kept: of each sequence, how many of the positions `keep` are its own. answers: (pairs, 2) or (answers, 1) tokens of
    the answers. reference: of that shape, log-probabilities in nats of the answers under the base; (0, 2) where none
    are needed.
    """

    kept: tuple[int, ...]
    answers: Tensor
    reference: Tensor

    def log_probabilities(self, losses: Tensor) -> Tensor:
        """The log-probabilities of the answers, in the shape of `answers`, of the `losses` at all positions `keep` of
        all rows."""
        return -torch.stack([part.sum() for part in losses.split(self.kept)]).view(self.answers.shape)


@dataclass(frozen=True)
class WholePairBatch(PairBatch):
    """Pairs whose targets are the tokens of the prompts too. in_answer: 1 for each target of an answer, else 0."""

    in_answer: Tensor

    def log_probabilities(self, losses: Tensor) -> Tensor:
        return super().log_probabilities(losses * self.in_answer)


@dataclass(frozen=True)
class MismatchedBatch(PairBatch):
    """Pairs or single answers, and as many of `mismatched` prompts and answers, from which KTO estimates its KL.

    signs: in the shape of `answers`, 1 of each good answer and -1 of each bad one.
    """

    mismatched: PairBatch
    signs: Tensor

    def to(self, device: torch.device) -> Self:
        return replace(super().to(device), mismatched=self.mismatched.to(device))


class PairObjective(Objective[Compared, PairBatch]):
    """An objective of pairs, a mean over them, or over single answers.

    beta: the weight of the preference. margin: SimPO's gamma. max_length: tokens at which a sequence is cut; None for
    no limit. reference: by a sequence's identity, the log-probability in nats of its answer under the base; `refer_to`
    fills it.
    """

    by_token = True

    def __init__(self, beta: float, reference: dict[int, float], margin: float = 0.0, max_length: int | None = None):
        self.beta, self.reference, self.margin, self.max_length = beta, reference, margin, max_length

    def batch(self, layout: Layout, drawn: list[Compared]) -> PairBatch:
        return self._paired(layout, drawn)

    def _paired(self, layout: Layout, pairs: Sequence[Compared]) -> PairBatch:
        batch, sequences = layout.batch([*pairs]), [each for pair in pairs for each in pair.sequences]
        answers = [len(each.supervised) for each in sequences]
        if batch.lengths is None:
            kept = [len(batch.keep)] * len(sequences)
        else:
            kept = [len(each.ids) - 1 for each in sequences] if layout.every else answers
        return PairBatch(
            **vars(batch),
            kept=tuple(kept),
            answers=torch.tensor(answers).view(len(pairs), -1),
            reference=self._reference(pairs),
        )

    def _reference(self, drawn: Sequence[Compared]) -> Tensor:
        return torch.empty(0, 2)

    def referred(self, batches: Iterable[Sequence[Compared]]) -> list[Compared]:
        """The pairs of which the objective asks the base, where `batches` of pairs are drawn together."""
        return []

    def refer_to(
        self,
        base: nn.Module,
        batches: Iterable[Sequence[Compared]],
        size: int,
        layout: Layout,
        accelerator: Accelerator,
    ) -> None:
        """Take what the objective needs of `base` on `batches` of pairs drawn together, `size` pairs at a time."""

    def summed(self, model: nn.Module, batch: PairBatch) -> Tensor:
        return self.summed_with_logs(model, batch)[0]

    def summed_with_logs(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """As `summed`, and the log-probabilities of the answers, in the shape of `batch.answers`."""
        logs = log_probabilities(model, batch)
        return self.losses(logs, batch).sum(), logs

    def weight(self, batch: PairBatch) -> int:
        """How many terms the loss of `batch` sums: pairs, or single answers."""
        return len(batch.answers)

    @abstractmethod
    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        """The loss of each pair, (pairs,), of the log-probabilities `logs` (pairs, 2) of its answers."""

    @abstractmethod
    def rewards(self, logs: Tensor, batch: PairBatch) -> Tensor:
        """The implicit rewards of the answers, in the shape of their log-probabilities `logs`."""


class Referring(PairObjective):
    """An objective that compares the model with its base.

    The implicit reward of an answer is beta times the logarithm of its probability's ratio to the base's.
    """

    def rewards(self, logs: Tensor, batch: PairBatch) -> Tensor:
        return self.beta * (logs - batch.reference)

    def of_a_guess(self, vocabulary: int) -> float:
        """Infinite: the loss begins at that of a coin, so no end is told from a guess."""
        return math.inf

    def _reference(self, drawn: Sequence[Compared]) -> Tensor:
        return torch.tensor([[self.reference[id(each)] for each in pair.sequences] for pair in drawn])

    def referred(self, batches: Iterable[Sequence[Compared]]) -> list[Compared]:
        return [pair for batch in batches for pair in batch]

    def refer_to(
        self,
        base: nn.Module,
        batches: Iterable[Sequence[Compared]],
        size: int,
        layout: Layout,
        accelerator: Accelerator,
    ) -> None:
        by_size = by_length(self.referred(batches), size)
        sequences = [[each for pair in some for each in pair.sequences] for some in by_size]
        self.reference |= {id(each): 0.0 for some in sequences for each in some}  # a batch has a place for them
        base.eval()
        with torch.no_grad(), accelerator.autocast(), ExitStack() as stack:
            if layout.flat:
                stack.enter_context(attention.enabled(base))
            if not layout.every:  # else speed-ups are off
                stack.enter_context(loss.enabled(base))
            for some, answers in zip(by_size, sequences, strict=True):
                logs = log_probabilities(base, self._paired(layout, some).to(accelerator.device)).flatten()
                self.reference |= {id(each): log for each, log in zip(answers, logs.tolist(), strict=True)}


class DirectPreference(Referring):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7), with the sigmoid loss."""

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        better, worse = self.rewards(logs, batch).unbind(1)
        return -logsigmoid(better - worse)


class IdentityPreference(Referring):
    """IPO (Azar et al. 2023, arXiv:2310.12036, equation 17); beta is the article's tau.

    As in TRL, which asked the authors, an answer's log-ratio is a mean over its tokens, so that the squared loss does
    not grow with their number.
    """

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        better, worse = ((logs - batch.reference) / batch.answers).unbind(1)
        return (better - worse - 1 / (2 * self.beta)) ** 2


class KahnemanTversky(Referring):
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8), with equal weights of desirable and
    undesirable answers. Each pair is taken as one of both; its loss is their mean.

    The KL between model and base, which has no gradient, is estimated as in TRL: over the answers of a micro-batch,
    each after another answer's prompt.
    """

    @cached_property
    def _mismatched(self) -> dict[tuple[int, ...], list[Compared]]:
        """By the identities of the pairs of a batch."""
        return {}

    def batch(self, layout: Layout, drawn: list[Compared]) -> PairBatch:
        matched, signs = self._paired(layout, drawn), torch.tensor([pair.signs for pair in drawn])
        return MismatchedBatch(**vars(matched), mismatched=self._paired(layout, self.mismatched(drawn)), signs=signs)

    def parts(self, items: Sequence[Compared], size: int) -> list[list[Compared]]:
        """As of any objective, but one that would be alone joins those before it: it needs another one's prompt."""
        divided = super().parts(items, size)
        if len(divided) > 1 and len(divided[-1]) == 1:
            divided[-2:] = [[*divided[-2], *divided[-1]]]
        return divided

    def referred(self, batches: Iterable[Sequence[Compared]]) -> list[Compared]:
        return [pair for batch in batches for pair in (*batch, *self.mismatched(batch))]

    def mismatched(self, pairs: Sequence[Compared]) -> list[Compared]:
        """The answers of `pairs`, drawn together, each after the prompt of the next one; chosen ones first."""
        key = tuple(map(id, pairs))
        if key not in self._mismatched:
            sequences = [each for places in zip(*(pair.sequences for pair in pairs), strict=True) for each in places]
            rotated = sequences[-1:] + sequences[:-1]
            others = [joined(*each, self.max_length) for each in zip(sequences, rotated, strict=True)]
            count = len(pairs)
            self._mismatched[key] = [pair.with_sequences(others[i::count]) for i, pair in enumerate(pairs)]
        return self._mismatched[key]

    def summed_with_logs(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, MismatchedBatch)  # as `batch` makes them
        with torch.no_grad():
            other = log_probabilities(model, batch.mismatched)
        divergence = (other - batch.mismatched.reference).mean().clamp(min=0)
        logs = log_probabilities(model, batch)
        return self.unpaired(logs, batch, divergence).sum(), logs

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        """As if the model had no divergence from its base."""
        return self.unpaired(logs, batch, logs.new_zeros(()))

    def unpaired(self, logs: Tensor, batch: PairBatch, divergence: Tensor) -> Tensor:
        """The mean loss of each pair's answers, (pairs,), at the `divergence` in nats of the model from its base."""
        assert isinstance(batch, MismatchedBatch)
        at, signs = self.beta * divergence, batch.signs.unbind(1)
        rewards = self.rewards(logs, batch).unbind(1)
        gains = [torch.sigmoid(sign * (reward - at)) for sign, reward in zip(signs, rewards, strict=True)]
        return reduce(operator.sub, gains, torch.full_like(gains[0], len(gains))) / len(gains)


class ReferenceFree(PairObjective):
    """An objective that needs no base: the reward of an answer is beta times its mean log-probability per token."""

    def rewards(self, logs: Tensor, batch: PairBatch) -> Tensor:
        return self.beta * logs / batch.answers


class SimplePreference(ReferenceFree):
    """SimPO (Meng et al. 2024, arXiv:2405.14734, equation 6); `margin` is the article's gamma."""

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        better, worse = self.rewards(logs, batch).unbind(1)
        return -logsigmoid(better - worse - self.margin)

    def of_a_guess(self, vocabulary: int) -> float:
        """Infinite: the base's answers have about equal rewards, so no end is told from a guess."""
        return math.inf


class SimplePreferenceOfLikely(SimplePreference):
    """CPO-SimPO, as TRL has it: SimPO, and the cross-entropy of the chosen answers, a mean over their tokens."""

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        return super().losses(logs, batch) - logs[:, 0].sum() / batch.answers[:, 0].sum()

    def of_a_guess(self, vocabulary: int) -> float:
        """A guess gives both answers the same reward."""
        return math.log(vocabulary) + float(softplus(torch.tensor(self.margin)))


class OddsRatio(ReferenceFree):
    """ORPO (Hong et al. 2024, arXiv:2403.07691, equations 3 to 7): cross-entropy of the chosen answer, and beta (lambda
    in the article) times the loss of its odds against those of the rejected one.

    An answer's probability is the geometric mean of its tokens'. As in TRL, its reward is beta times the logarithm.
    """

    def losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        return -logs[:, 0] / batch.answers[:, 0] + self.odds_losses(logs, batch)

    def odds_losses(self, logs: Tensor, batch: PairBatch) -> Tensor:
        """The loss of the odds of each pair, (pairs,), with its weight."""
        better, worse = (logs / batch.answers).unbind(1)
        odds = better - worse - log_complement(better) + log_complement(worse)
        return -self.beta * logsigmoid(odds)

    def of_a_guess(self, vocabulary: int) -> float:
        """A guess gives both answers the same odds."""
        return math.log(vocabulary) + self.beta * math.log(2)


class OddsRatioOfTrl(OddsRatio):
    """ORPO as TRL has it: the cross-entropy is of the chosen answers and their prompts, and a mean over all these
    tokens of a micro-batch, so that a long pair counts for more than a short one.
    """

    def batch(self, layout: Layout, drawn: list[Compared]) -> PairBatch:
        whole = self._paired(layout, [pair.with_sequences(each.whole() for each in pair.sequences) for pair in drawn])
        sequences = [each for pair in drawn for each in pair.sequences]
        places = [set(each.supervised) for each in sequences]
        in_answer = [
            float(at + 1 in answer) for answer, count in zip(places, whole.kept, strict=True) for at in range(count)
        ]
        pairs = [pair.sequences for pair in drawn]
        counted = sum(len(chosen.ids) - 1 + len(rejected.supervised) for chosen, rejected in pairs)
        answers = torch.tensor(list(map(len, places))).view(-1, 2)
        fields = vars(whole) | {"answers": answers, "supervised": counted}
        return WholePairBatch(**fields, in_answer=torch.tensor(in_answer))

    def summed_with_logs(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
        losses = token_losses(model, batch)
        better = losses.split(batch.kept)[::2]
        tokens = (batch.targets.flatten() != IGNORED).split(batch.kept)[::2]
        entropy = torch.cat(better).sum() / torch.cat(tokens).sum()
        logs = batch.log_probabilities(losses)
        return len(batch.answers) * entropy + self.odds_losses(logs, batch).sum(), logs


KINDS: dict[str, type[PairObjective]] = {
    "dpo": DirectPreference,
    "ipo": IdentityPreference,
    "kto": KahnemanTversky,
    "simpo": SimplePreference,
    "cpo_simpo": SimplePreferenceOfLikely,
    "orpo": OddsRatio,
    "orpo_trl": OddsRatioOfTrl,
}


def objective_of(train: TrainSettings, valued: bool = True) -> AnyObjective:
    """The objective of the settings `train`. valued: False for a prediction, which has no values of the base."""
    return pairwise(train, valued) if train.paired else ANSWERS


def pairwise(train: TrainSettings, valued: bool = True) -> PairObjective:
    """The objective of pairs of the settings `train`. Raises UserError if they have none, or lack its beta."""
    if train.objective not in KINDS or train.preference_beta is None:
        raise UserError(f"train.objective={train.objective} requires train.preference_beta, the preference's weight.")
    none: dict[int, float] = {} if valued else defaultdict(float)
    return KINDS[train.objective](train.preference_beta, none, train.preference_margin or 0.0, train.max_length)


def joined(before: Example, after: Example, most: int | None) -> Example:
    """The answer of `after` after the prompt of `before`, cut at `most` tokens."""
    shift = before.prompt - after.prompt
    ids = (before.ids[: before.prompt] + after.ids[after.prompt :])[:most]
    return Example(ids, before.prompt, tuple((begin + shift, end + shift) for begin, end in after.between))


def by_length(pairs: Iterable[Compared], size: int) -> list[list[Compared]]:
    """Each of `pairs` once, the short ones first, in batches of `size`: what the base is asked of."""
    waiting = sorted({id(pair): pair for pair in pairs}.values(), key=lambda pair: len(pair.ids))
    return [waiting[i : i + size] for i in range(0, len(waiting), size)]


def log_probabilities(model: nn.Module, batch: PairBatch) -> Tensor:
    """The log-probabilities in nats of the answers of `batch`, in fp32 and in the shape of `batch.answers`."""
    return batch.log_probabilities(token_losses(model, batch))


def token_losses(model: nn.Module, batch: PairBatch) -> Tensor:
    """The cross-entropy in nats at each position `keep` of each row of `batch`, in fp32; 0 where it has no target."""
    with loss.at_head(model, batch.targets) as taken:
        losses = answer_logits(model, batch)
    if not taken:
        targets = batch.targets.flatten()
        losses = cross_entropy(losses.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="none")
    return losses


def log_complement(logs: Tensor) -> Tensor:
    """log(1 - p) of the probabilities whose logarithms are `logs`, without cancellation (Mächler 2012)."""
    logs = logs.clamp(max=CERTAIN)
    near_one = logs > -math.log(2)
    return torch.where(near_one, torch.log(-torch.expm1(logs)), torch.log1p(-torch.exp(logs)))
