"""The only training loop. It knows a model, an optimizer and batches; it never sees a method's name.

Only the step is timed: first forward to zeroed gradients, synchronised on both sides. Making batches, moving them
to the device, validation, reporting and saving are not timed. Energy is read around the same steps.

Several processes (accelerate's, one for each device) may share a step: each takes its part of the micro-batches. All of
them know the whole step, count its tokens, and report the same losses.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from harness import record
from harness.job.data.batching import Batch, Layout
from harness.job.data.encoding import IGNORED, Example
from harness.job.measure.energy import Energy
from harness.job.measure.timing import Stopwatch
from harness.job.training import attention, compiled, distributed
from harness.job.training.checkpoints import Checkpoints
from harness.job.training.divergence import Divergence, Validation
from harness.job.training.early_stop import EarlyStop
from harness.job.training.loss import at_head
from harness.protocol import Report
from harness.record import LossPoint, Tokens, Train, ValidationPoint
from harness.settings import TunedTrain

PARTS = ("forward", "backward", "optimizer")  # of a step
WARMUP = 3  # first steps, which the steady rate leaves out: they choose kernels and allocate state

D = TypeVar("D")  # what a batch is made of
B = TypeVar("B", bound=Batch)


class Objective(ABC, Generic[D, B]):
    """What training minimises: it makes batches, and turns a batch into a loss.

    objectives.py has those of pairs of answers.
    """

    by_token = False  # whether the head gives its losses token by token, for which `harness.job.training.loss` is asked

    @abstractmethod
    def batch(self, layout: Layout, drawn: list[D]) -> B:
        """The batch of what was `drawn`, on the host."""

    def batches(self, layout: Layout, drawn: list[D], size: int) -> list[B]:
        """Batches of what was `drawn`, as `parts` divides it."""
        return [self.batch(layout, part) for part in self.parts(drawn, size)]

    def parts(self, items: Sequence[D], size: int) -> list[list[D]]:
        """`items` in their order, `size` at a time."""
        return [[*items[i : i + size]] for i in range(0, len(items), size)]

    @abstractmethod
    def summed(self, model: nn.Module, batch: B) -> torch.Tensor:
        """The loss, a sum over what `weight` counts, in nats."""

    @abstractmethod
    def weight(self, batch: B) -> int:
        """How many terms the loss of `batch` sums."""

    @abstractmethod
    def of_a_guess(self, vocabulary: int) -> float:
        """The mean loss of a uniform guess over the `vocabulary`; infinite if it means nothing."""


class AnswerLoss(Objective[Example, Batch]):
    """The cross-entropy of answers, a mean over their supervised tokens."""

    def batch(self, layout: Layout, drawn: list[Example]) -> Batch:
        return layout.batch([*drawn])

    def summed(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return summed_loss(model, batch)

    def weight(self, batch: Batch) -> int:
        return batch.supervised

    def of_a_guess(self, vocabulary: int) -> float:
        return math.log(vocabulary)


AnyObjective = Objective[Any, Any]  # whatever its batches are made of
ANSWERS = AnswerLoss()


class StepBatches:
    """The micro-batches of one step after another, on the host; each is made when it is asked for.

    drawn: what each micro-batch of each step is made of, by `make`. begin: called with a step's number as it is asked
    for.
    """

    def __init__(
        self, drawn: Sequence[Sequence[D]], make: Callable[[D], Batch], begin: Callable[[int], None] = lambda step: None
    ):
        self._drawn, self._begin, self._order = drawn, begin, hashlib.sha256()
        self._make: Callable[[Any], Batch] = make

    def __len__(self) -> int:
        return len(self._drawn)

    def __iter__(self) -> Iterator[list[Batch]]:
        for number, step in enumerate(self._drawn, start=1):
            self._begin(number)
            micro = [self._make(drawn) for drawn in step]
            for batch in micro:
                self._order.update(batch.tokens.cpu().numpy().tobytes())
            yield micro

    @property
    def fingerprint(self) -> str:
        """A hash of the token ids of all steps that were asked for, in their order."""
        return f"sha256:{self._order.hexdigest()}"


@dataclass
class History:
    """What the loop has measured by the end of a step; a checkpoint keeps it.

    seconds, laps, raw: of each step. padded, supervised: tokens of all steps. resumed_at, compiling: as resumed_at and
    compile_seconds in harness.record.Train.
    """

    seconds: list[float] = field(default_factory=list)
    laps: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    raw: list[int] = field(default_factory=list)
    padded: int = 0
    supervised: int = 0
    losses: list[LossPoint] = field(default_factory=list)
    validations: list[ValidationPoint] = field(default_factory=list)
    joules: float | None = 0.0
    resumed_at: list[int] = field(default_factory=list)
    compiling: list[float] = field(default_factory=list)

    @classmethod
    def resumed(cls, saved: dict[str, Any]) -> History:
        """The history that a checkpoint kept as `saved`, noting that training resumes from there."""
        history = record.decode(cls, saved)
        history.resumed_at.append(history.steps)
        return history

    @property
    def steps(self) -> int:
        return len(self.seconds)

    def add_cost(self, seconds: float, laps: dict[str, float], joules: float | None, compiling: float | None) -> None:
        """Add what a step took. compiling: seconds of torch.compile within it; None without compilation."""
        self.seconds.append(seconds)
        for part in PARTS:
            self.laps[part].append(laps[part])
        self.joules = None if self.joules is None or joules is None else self.joules + joules
        if compiling is not None:
            self.compiling.append(compiling)

    def add_loss(self, micro: list[Batch], loss: float, lr: float, norm: float | None) -> LossPoint:
        """Add the loss of a step over the micro-batches `micro`, and their tokens."""
        self.raw.append(sum(batch.raw for batch in micro))
        self.padded += sum(batch.padded for batch in micro)
        self.supervised += sum(batch.supervised for batch in micro)
        point = LossPoint(len(self.raw), sum(self.raw), loss, lr, norm)
        self.losses.append(point)
        return point

    def measured(self, batches: str, save_every: int | None) -> Train:
        """The measurements of training. batches: as StepBatches.fingerprint. save_every: steps between checkpoints."""
        measured = Train(
            steps=self.steps,
            tokens=Tokens(sum(self.raw), self.padded, self.supervised),
            step_seconds=self.seconds,
            warmup_steps=min(WARMUP, self.steps - 1),
            tokens_per_second_steady=None,
            tokens_per_second_amortised=sum(self.raw) / sum(self.seconds),
            loss=self.losses,
            batches=batches,
            laps={part: self.laps[part] for part in PARTS},
            joules=self.joules,
            save_every=save_every,
            resumed_at=self.resumed_at,
            compile_seconds=self.compiling,
        )
        if steady := measured.steady_steps():
            measured.tokens_per_second_steady = median(self.raw[i] / self.seconds[i] for i in steady)
        return measured


def train(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    steps: StepBatches,
    settings: TunedTrain,
    accelerator: Accelerator,
    history: History,
    divergence: Divergence,
    validation: Validation,
    report: Report,
    early_stop: EarlyStop | None = None,
    checkpoints: Checkpoints | None = None,
    objective: AnyObjective = ANSWERS,
) -> None:
    """Take one optimizer step for each list of micro-batches in `steps` that `history`, which grows, has not yet.

    Raises Diverged. report: called with each step's number, loss, learning rate, norm and pace. early_stop: training
    ends after a step where it says so. checkpoints: saved at their interval and after the last step.
    """
    stopwatch, energy = Stopwatch(accelerator.device), Energy(accelerator.device)
    model.train()
    for step, micro in enumerate(steps, start=1):
        if step <= history.steps:
            continue
        micro = [batch.to(accelerator.device) for batch in micro]
        lr = float(schedule.get_last_lr()[0])

        accelerator.wait_for_everyone()
        start, compiling = energy.read(), compiled.seconds() if settings.compile else None
        stopwatch.start()
        loss, norm = take_step(model, optimizer, micro, settings.max_grad_norm, accelerator, stopwatch.lap, objective)
        seconds, laps = stopwatch.stop()
        used = Energy.between(start, energy.read())
        seconds, laps, used = distributed.slowest(seconds, laps, used, accelerator)
        history.add_cost(seconds, laps, used, None if compiling is None else compiled.seconds() - compiling)

        schedule.step()
        mean = float(accelerator.reduce(loss, "mean"))
        point = history.add_loss(micro, mean, lr, None if norm is None else float(norm))
        divergence.check(point)
        pace = {"tokens_per_second": history.raw[-1] / seconds}
        report({"step": step, "of": len(steps), "loss": mean, "lr": lr, "grad_norm": point.grad_norm} | pace)
        if (held_out := validation.after(history.losses)) is not None:
            history.validations.append(held_out)
            model.train()
        if early_stop is not None and early_stop.stops(step, history.validations, accelerator):
            break
        if checkpoints is None or not (checkpoints.by_all_ranks or accelerator.is_main_process):
            continue
        if checkpoints.due(step, len(steps)):
            checkpoints.save(step, model, optimizer, schedule, asdict(history))


def take_step(
    model: nn.Module,
    optimizer: Optimizer,
    micro: list[Batch],
    max_grad_norm: float | None,
    accelerator: Accelerator,
    lap: Callable[[str], None],
    objective: AnyObjective = ANSWERS,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Take one optimizer step over micro-batches on the device. Returns its loss and its gradient's unclipped norm.

    The norm is None if no gradient is left after the backward pass. The loss is the mean over the supervised tokens of
    the whole step (or what else the objective weighs by), so that micro-batches give the gradient of the batch. With
    several processes, the mean of their losses is the step's loss, and the mean of their gradients, which accelerate
    takes, is the batch's gradient.

    lap: called with each of PARTS as it ends.
    """
    weight = sum(map(objective.weight, micro)) / accelerator.num_processes
    mine = own(micro, accelerator)
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(mine, start=1):
        with accelerator.no_sync(model) if number < len(mine) else nullcontext():  # all-reduced once, with the last
            with accelerator.autocast():
                loss = objective.summed(model, batch) / weight
            lap("forward")
            accelerator.backward(loss)
        total += loss.detach()
        lap("backward")
    # All parameters: frozen ones have no gradient, and this needs no list of the trainable.
    held = [p for p in model.parameters() if p.grad is not None]
    norm = accelerator.clip_grad_norm_(held, max_grad_norm or math.inf) if held else None
    optimizer.step()
    optimizer.zero_grad()
    lap("optimizer")
    return total, norm


def own(micro: list[Batch], accelerator: Accelerator) -> list[Batch]:
    """This process's part of a step's micro-batches."""
    return micro[accelerator.process_index :: accelerator.num_processes]


def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats summed over the batch's supervised tokens, computed in fp32."""
    with at_head(model, batch.targets) as taken:
        logits = answer_logits(model, batch)
    if taken:
        return logits
    return cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def answer_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The logits (rows, k, vocabulary) of `model` at the positions `batch.keep`."""
    if batch.attention_mask is None:
        layout = {"position_ids": batch.position_ids}
    else:
        layout = {"attention_mask": batch.attention_mask}
    keep = batch.keep - batch.input_ids.shape[1]  # from the end: a method may prepend virtual tokens
    with attention.end_to_end(model, batch.lengths) as applies:
        if applies:
            # Without a mask, transformers reads the position ids to learn whether they are of several sequences, and
            # the host waits for the GPU. A mask of ones spares that, and changes nothing: this attention takes none.
            layout["attention_mask"] = torch.ones_like(batch.input_ids, dtype=torch.bool)
        return model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=keep, **layout).logits


@torch.no_grad()
def answer_loss(
    model: nn.Module, batches: list[Batch], accelerator: Accelerator, objective: AnyObjective = ANSWERS
) -> float:
    """Mean loss in nats over all `batches`: of their supervised tokens, or what else the objective weighs by."""
    model.eval()
    total = 0.0
    for batch in batches:
        with accelerator.autocast():
            total += float(objective.summed(model, batch.to(accelerator.device)))
    return total / sum(map(objective.weight, batches))


def rate_factor(settings: TunedTrain, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at step i, from 0, of `total`: a linear warm-up, then the schedule of `settings`."""
    rise = round(total * settings.warmup_ratio)
    falls: Callable[[float], float] = {  # from 1 to 0, by the share of the steps after the warm-up
        "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
        "linear": lambda share: 1 - share,
        "constant": lambda share: 1.0,
    }[settings.schedule]

    def factor(i: int) -> float:
        if i < rise:
            return (i + 1) / (rise + 1)
        return settings.final_lr + (1 - settings.final_lr) * falls((i - rise) / max(1, total - rise))

    return factor
