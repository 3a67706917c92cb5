"""The only training loop. It knows a model, an optimizer and batches; it never sees a method's name.

Only the step is timed: first forward to zeroed gradients, synchronised on both sides. Making batches, moving them
to the device, validation, reporting and saving are not timed. Energy is read around the same steps.

Several processes (accelerate's, one for each device) may share a step: each takes its part of the micro-batches. All of
them know the whole step, count its tokens, and report the same losses.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from harness import record
from harness.job.data.batching import Batch, Layout
from harness.job.data.encoding import IGNORED, Drawn
from harness.job.measure.energy import Energy
from harness.job.measure.timing import Stopwatch
from harness.job.training import attention, compiled, distributed
from harness.job.training.checkpoints import Checkpoints
from harness.job.training.halving import CellHalving
from harness.job.training.loss import at_head
from harness.record import LossPoint, Tokens, Train, ValidationPoint
from harness.settings import TrainSettings

PARTS = ("forward", "backward", "optimizer")  # of a step
WARMUP = 3  # first steps, which the steady rate leaves out: they choose kernels and allocate state


UNLEARNED, FORGOT = 0.99, 1.5  # shares of a uniform guess's loss, and of the first step's, that a final loss exceeds


class Diverged(Exception):
    """The loss or the norm of its gradient is not finite, or the model that was trained knows nothing any more.

    what: a predicate's subject and verb, such as "The loss became nan".
    """

    def __init__(self, step: int, what: str):
        super().__init__(f"{what} at step {step}; a lower lr or stronger clipping may help.")
        self.step = step


class Objective:
    """What training minimises: it makes batches, and turns a batch into a loss.

    This one is the cross-entropy of answers, a mean over their tokens. objectives.py has those of pairs of answers.
    """

    by_token = False  # whether the head gives its losses token by token, for which `harness.job.training.loss` is asked

    def batch(self, layout: Layout, drawn: list[Drawn]) -> Batch:
        """The batch of what was `drawn`, on the host."""
        return layout.batch(drawn)

    def batches(self, layout: Layout, drawn: list[Drawn], size: int) -> list[Batch]:
        """Batches of `size` of what was `drawn`, in its order."""
        return [self.batch(layout, drawn[i : i + size]) for i in range(0, len(drawn), size)]

    def summed(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss, a sum over what `weight` counts, in nats."""
        return summed_loss(model, batch)

    def weight(self, batch: Batch) -> int:
        """How many terms the loss of `batch` sums: supervised tokens."""
        return batch.supervised

    def of_a_guess(self, vocabulary: int) -> float:
        """The mean loss of a uniform guess over the `vocabulary`; infinite if it means nothing."""
        return math.log(vocabulary)


ANSWERS = Objective()


@dataclass
class SoFar:
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

    @property
    def steps(self) -> int:
        return len(self.seconds)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: Iterable[list[Batch]],
    settings: TrainSettings,
    accelerator: Accelerator,
    validate: Callable[[], float],
    report: Callable[[dict], None],
    checkpoints: Checkpoints | None = None,
    guess: float = math.inf,
    objective: Objective = ANSWERS,
    halving: CellHalving | None = None,
) -> tuple[Train, list[ValidationPoint]]:
    """Take one optimizer step for each list of micro-batches in `steps`. Raises Diverged.

    validate: returns the validation loss; called at intervals and after the last step.
    report: called with each step's number, loss, learning rate, norm and pace.
    checkpoints: training resumes from them, and saves at their interval and after the last step.
    guess: loss of a uniform guess over the vocabulary, in nats. A model that ends there and began well below has
        diverged.
    objective: of the batches in `steps`.
    halving: training ends at a rung of it where it says so, and at once if the model knows nothing any more.
    """
    total = settings.max_steps
    schedule = LambdaLR(optimizer, rate_factor(settings))
    done = SoFar()
    if checkpoints is not None and (saved := checkpoints.restore(model, optimizer, schedule)) is not None:
        done = record.decode(SoFar, saved)
        done.resumed_at.append(done.steps)
    before = done.steps
    if len(set(gather_object([before]))) > 1:
        raise RuntimeError("Not every device could resume from the checkpoint.")
    order = hashlib.sha256()
    stopwatch, energy = Stopwatch(accelerator.device), Energy(accelerator.device)

    model.train()
    for step, micro in enumerate(steps, start=1):
        for batch in micro:
            order.update(batch.tokens.cpu().numpy().tobytes())
        if step <= before:
            continue
        micro = [batch.to(accelerator.device) for batch in micro]
        lr = schedule.get_last_lr()[0]

        accelerator.wait_for_everyone()
        start, compiling = energy.read(), settings.compile and compiled.seconds()
        stopwatch.start()
        loss, norm = take_step(model, optimizer, micro, settings.max_grad_norm, accelerator, stopwatch.lap, objective)
        taken, parts = stopwatch.stop()
        used = Energy.between(start, energy.read())
        taken, parts, used = distributed.slowest(taken, parts, used, accelerator)
        done.joules = None if done.joules is None or used is None else done.joules + used
        done.seconds.append(taken)
        if settings.compile:
            done.compiling.append(compiled.seconds() - compiling)
        for part in PARTS:
            done.laps[part].append(parts[part])

        schedule.step()
        loss, norm = float(accelerator.reduce(loss, "mean")), None if norm is None else float(norm)
        for what, value in (("loss", loss), ("gradient's norm", norm)):
            if value is not None and not math.isfinite(value):
                raise Diverged(step, f"The {what} became {value}")
        done.raw.append(sum(batch.raw for batch in micro))
        done.padded += sum(batch.padded for batch in micro)
        done.supervised += sum(batch.supervised for batch in micro)
        done.losses.append(LossPoint(step, sum(done.raw), loss, lr, norm))
        pace = done.raw[-1] / taken
        report({"step": step, "of": total, "loss": loss, "lr": lr, "grad_norm": norm, "tokens_per_second": pace})
        every, began = settings.validate_every, done.losses[0].loss
        lost = max(UNLEARNED * guess, FORGOT * began)
        planned = step == total or (every and step % every == 0)
        at_rung = halving is not None and step in halving.rungs
        if planned or at_rung or (halving is not None and loss > lost):
            with nullcontext() if planned else halving.meter.aside():
                held_out = validate()
            if not math.isfinite(held_out):
                raise Diverged(step, f"The validation loss became {held_out}")
            if (step == total or halving is not None) and held_out > lost:
                raise Diverged(
                    step,
                    f"The validation loss is {held_out:.2f}, no better than a uniform guess ({guess:.2f}), after a "
                    f"training loss of {began:.2f} at step 1,",
                )
            done.validations.append(ValidationPoint(step, sum(done.raw), held_out))
            model.train()
        if at_rung and _ends(halving, done.validations[-1], accelerator):
            break
        save = checkpoints is not None and (step == total or step % checkpoints.every == 0)
        if save and accelerator.is_main_process:
            checkpoints.save(step, model, optimizer, schedule, asdict(done))

    measured = Train(
        steps=done.steps,
        tokens=Tokens(sum(done.raw), done.padded, done.supervised),
        step_seconds=done.seconds,
        warmup_steps=min(WARMUP, done.steps - 1),
        tokens_per_second_steady=None,
        tokens_per_second_amortised=sum(done.raw) / sum(done.seconds),
        loss=done.losses,
        batches=f"sha256:{order.hexdigest()}",
        laps=done.laps,
        joules=done.joules,
        save_every=checkpoints and checkpoints.every,
        resumed_at=done.resumed_at,
        compile_seconds=done.compiling,
    )
    if steady := measured.steady_steps():
        measured.tokens_per_second_steady = median(done.raw[i] / done.seconds[i] for i in steady)
    return measured, done.validations


def _ends(halving: CellHalving, at: ValidationPoint, accelerator: Accelerator) -> bool:
    """Whether the cell ends early. The first process decides for all."""
    with halving.meter.aside():
        ends = [accelerator.is_main_process and halving.ends(at.step, at.tokens, at.loss) is not None]
        broadcast_object_list(ends)
    return ends[0]


def take_step(
    model: nn.Module,
    optimizer: Optimizer,
    micro: list[Batch],
    max_grad_norm: float | None,
    accelerator: Accelerator,
    lap: Callable[[str], None],
    objective: Objective = ANSWERS,
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
    with attention.end_to_end(model, batch.lengths):
        return model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=keep, **layout).logits


@torch.no_grad()
def answer_loss(
    model: nn.Module, batches: list[Batch], accelerator: Accelerator, objective: Objective = ANSWERS
) -> float:
    """Mean loss in nats over all `batches`: of their supervised tokens, or what else the objective weighs by."""
    model.eval()
    total = 0.0
    for batch in batches:
        with accelerator.autocast():
            total += float(objective.summed(model, batch.to(accelerator.device)))
    return total / sum(map(objective.weight, batches))


def rate_factor(settings: TrainSettings) -> Callable[[int], float]:
    """Factor of the learning rate at step i, from 0: a linear warm-up, then the schedule of the settings."""
    total, rise = settings.max_steps, round(settings.max_steps * settings.warmup_ratio)
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
