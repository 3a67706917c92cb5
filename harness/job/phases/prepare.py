"""Prepares the training of a cell's model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer

from harness.job.data import batching
from harness.job.data.encoding import Drawn
from harness.job.local_cell import LocalCell
from harness.job.methods import optimizers
from harness.job.models import weight_only
from harness.job.phases.load import Loaded, adapter_ids
from harness.job.training import activation_offload, attention, gradient_checkpointing
from harness.settings import TunedTrain


@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained.

    steps: what each micro-batch of each step has drawn. adapters: ids of the parameters that the method added. build:
    makes the optimizer of a model. undo: of what the model has for training alone.
    """

    settings: TunedTrain
    steps: list[list[list[Drawn]]]
    adapters: set[int]
    build: Callable[[nn.Module], Optimizer]
    undo: ExitStack


def prepare(cell: LocalCell, model: nn.Module, loaded: Loaded) -> tuple[nn.Module, TrainingPlan]:
    """`model` as it is trained, which may be wrapped or sharded, and the plan of its training."""
    cell.reporter.enter("probe")
    settings, accelerator, undo = cell.settings.train.tuned(), cell.accelerator, ExitStack()
    steps = batching.pieces(cell.inputs.steps, cell.batch_size, settings)
    make_optimizer = instantiate(cell.settings.method.optim, _convert_="all")

    def build(net: nn.Module) -> Optimizer:
        optimizer = make_optimizer(net)
        optimizers.set_betas(optimizer, settings.betas)
        if not cell.settings.fast:
            cell.speedups["grouped_steps"] = attention.OFF
        elif optimizers.group_steps(optimizer):
            cell.speedups["grouped_steps"] = "on"
        cell.holders.set_optimizer(optimizer)
        return optimizer

    if settings.gradient_checkpointing:
        undo.callback(gradient_checkpointing.enable(model))
    if settings.activation_offload:
        undo.callback(activation_offload.enable(model))
    if settings.total_devices > 1:
        build(model)  # an optimizer may leave some weights as they are, and DDP would wait for their gradients
        weight_only.keep_from_broadcast(model)
    model = accelerator.prepare_model(model)
    adapters = adapter_ids(cell, accelerator.unwrap_model(model), loaded.adapters)  # sharding replaces parameters
    return model, TrainingPlan(settings, steps, adapters, build, undo)
