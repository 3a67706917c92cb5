"""Trains and validates a cell's model, and leaves the other devices that it was trained on."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from harness.job import pairs
from harness.job.ended import CellEnded
from harness.job.local_cell import LocalCell
from harness.job.models import adapting, placement, structure
from harness.job.phases.load import Loaded, adapted_model
from harness.job.phases.prepare import TrainingPlan
from harness.job.training import attention, compiled, distributed, early_stop, loop, shards
from harness.job.training.checkpoints import Checkpoints
from harness.job.training.divergence import Divergence, HeldOutLoss, Validation
from harness.job.training.objectives import PairBatch, PairObjective
from harness.job.training.sharded_checkpoints import ShardedCheckpoints
from harness.record import BestStep, Record, Train, ValidationPoint


@dataclass(frozen=True)
class Trained:
    """What training measured. validations: up to that of the weights that the model has now.

    ended: what ended the cell early, null if it goes on. best: with train.early_stopping.
    """

    train: Train
    validations: list[ValidationPoint]
    ended: CellEnded | None
    best: BestStep | None

    def raise_if_ended(self) -> None:
        """Raise what ended the training early, if something did."""
        if self.ended is not None:
            raise self.ended


def train(cell: LocalCell, model: nn.Module, loaded: Loaded, plan: TrainingPlan) -> Trained:
    """Train `model`, from the last checkpoint if there is one. Raises Diverged."""
    cell.reporter.enter("train")
    settings, accelerator = plan.settings, cell.accelerator
    optimizer = accelerator.prepare_optimizer(plan.build(accelerator.unwrap_model(model)))
    if settings.compile:
        plan.undo.callback(compiled.enable(model))
    patient = early_stop.patient(settings, model, cell.meter)
    rule = early_stop.of_cell(cell.request, plan.steps, cell.meter)
    stop = patient or rule
    steps = loop.StepBatches(plan.steps, partial(cell.objective.batch, loaded.layout), cell.reporter.begin_step)
    with cell.meter.window("train"), cell.gpu:
        schedule = LambdaLR(optimizer, loop.rate_factor(settings, len(steps)))
        checkpoints = _checkpoints(cell)
        history = _history(checkpoints, model, optimizer, schedule)
        divergence = Divergence(loaded.guess, at_once=rule is not None)
        measure = partial(validate, cell, model, loaded)
        validation = Validation(measure, settings.validate_every, len(steps), divergence, stop)
        loop.train(
            *(model, optimizer, schedule, steps, settings, accelerator),
            *(history, divergence, validation, cell.reporter.end_step, stop, checkpoints),
            objective=cell.objective,
        )
        measured = history.measured(steps.fingerprint, None if checkpoints is None else checkpoints.every)
    plan.undo.close()
    best = None if patient is None else patient.restore(history.validations, len(steps))
    validations = [point for point in history.validations if best is None or point.step <= best.step]
    return Trained(measured, validations, None if stop is None else stop.ended, best)


def _checkpoints(cell: LocalCell) -> Checkpoints | None:
    of = {"cell": cell.cell.id, "batch_size": cell.batch_size, "fingerprints": cell.inputs.fingerprints}
    of |= {"precision": cell.precision, "speedups": dict(cell.speedups)}
    kind = ShardedCheckpoints if cell.sharded else Checkpoints
    return kind.asked_for(cell.request, of, cell.meter, cell.accelerator.device)


def _history(
    checkpoints: Checkpoints | None, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler
) -> loop.History:
    """What training has measured so far, by the checkpoint from which all devices resume; empty without one."""
    state = None if checkpoints is None else checkpoints.restore(model, optimizer, schedule)
    history = loop.History() if state is None else loop.History.resumed(state)
    if len(set(gather_object([history.steps]))) > 1:
        raise RuntimeError("Not every device could resume from the checkpoint.")
    return history


def validate(cell: LocalCell, model: nn.Module, loaded: Loaded) -> HeldOutLoss:
    """The validation loss, which a tracker is told: on all devices that of the first, as they decide by it alike."""
    if isinstance(cell.objective, PairObjective):
        batches = [batch for batch in loaded.validation if isinstance(batch, PairBatch)]  # as all are
        held_out = pairs.validate(model, cell.inputs.held_out, batches, cell.objective, cell.accelerator)
    else:
        held_out = HeldOutLoss(loop.answer_loss(model, loaded.validation, cell.accelerator, cell.objective))
    agreed = [held_out]
    broadcast_object_list(agreed)
    cell.reporter.track({"validation/loss": agreed[0].loss})
    return agreed[0]


def validate_untuned(cell: LocalCell, model: nn.Module, loaded: Loaded) -> list[ValidationPoint]:
    """The one validation of an untuned model. Raises FloatingPointError if its loss is not finite."""
    cell.reporter.enter("validate")
    with cell.meter.window("validate"):
        held_out = validate(cell, model, loaded)
    if not math.isfinite(held_out.loss):
        raise FloatingPointError(f"The validation loss of the untuned model is {held_out.loss}.")
    return [ValidationPoint(0, 0, held_out.loss, held_out.rewards)]


def free_training(cell: LocalCell) -> None:
    """Free what only training needs: the optimizer's state and, with DDP, the buckets of gradients."""
    cell.accelerator.free_memory()  # accelerate keeps all that it prepared
    gc.collect()  # a schedule's patch makes an optimizer refer to itself


def leave(
    cell: LocalCell, rank: distributed.LaunchedRank, model: nn.Module, loaded: Loaded, result: Record
) -> dict[str, torch.Tensor]:
    """Leave the other devices, with the figures of all in `result`.

    Returns the tuned weights of a sharded model by name, in the first process.
    """
    names = _tuned(cell, model, loaded) if cell.sharded else None
    weights = distributed.weights(model, cell.accelerator, names)
    result.gpus = gather_object(cell.gpu.states())
    assert result.probe is not None  # a tuned cell's was taken before it was trained
    result.probe, gpu_ids = distributed.combine(result.probe, cell.meter.phases, cell.accelerator.device)
    if gpu_ids is not None:
        cell.device_facts["id"] = gpu_ids
    cell.leave(rank)
    return weights


def _tuned(cell: LocalCell, model: nn.Module, loaded: Loaded) -> set[str]:
    """Names of the weights of `model` that its base, when it is loaded again, may lack or have other values of.

    Adapters that are not trained count, as some are drawn. A packed base counts with its scales, since another device
    may pack it with other roundings.
    """
    if adapting.changes_base(cell.cell) or getattr(structure.inner(model), "is_quantized", False):
        scales = {name for name in shards.tensors(model) if shards.SCALES in name}
        return scales | {name for name, _ in model.named_parameters()}
    return {name for name, p in model.named_parameters() if p.requires_grad or name in loaded.adapters}


def gather(cell: LocalCell, weights: dict[str, torch.Tensor], loaded: Loaded) -> tuple[nn.Module, Loaded]:
    """The whole model with its tuned `weights`, which are used up, and what follows from it.

    It is on one device, or, if that can't hold it, divided over those of this machine, layer by layer. A divided model
    computes on padded batches, and writes answers as lm-eval does: what is faster keeps its rows on one device.
    """
    gc.collect()
    copied = cell.bf16 and cell.settings.model.dtype == "float32"  # as it infers and scores: see linear_weights
    over = placement.over(loaded.size + copied * loaded.size // 2, placement.devices())
    model, _ = adapted_model(cell, "gather", cell.accelerator.device, over)
    distributed.restore(model, weights)
    if over is not None:
        cell.divided_over = len(over)
        return model, replace(loaded, layout=replace(loaded.layout, flat=False))
    if loaded.layout.flat:
        attention.enable(model)
    return model, loaded
