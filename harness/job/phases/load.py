"""Loads and adapts a cell's model, and enables what makes it faster without changing its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.job import pairs, speedups
from harness.job.data.batching import Batch, Layout
from harness.job.local_cell import LocalCell
from harness.job.models import adapting, loading, structure
from harness.job.training.objectives import PairObjective
from harness.record import Parameters, Record


@dataclass(frozen=True)
class Loaded:
    """What follows from the loaded and adapted model.

    adapters: names of the parameters that the method added. layout: of batches. validation: the batches of the
    validation loss. guess: the loss of a uniform guess over the vocabulary, in nats.
    """

    parameters: Parameters
    adapters: frozenset[str]
    layout: Layout
    validation: list[Batch]
    guess: float


def load(cell: LocalCell, result: Record) -> tuple[nn.Module, Loaded]:
    """The adapted model, and what follows from it."""
    # A model that is to be sharded may be too large for one device.
    model, adapters = adapted_model(cell, "load", torch.device("cpu") if cell.sharded else cell.accelerator.device)
    trainable = structure.count(model, trainable=True) if cell.tuned else 0
    result.parameters = parameters = Parameters(structure.count(model), trainable)
    pad, by_token = cell.inputs.tokenizer.pad_token_id, cell.objective.by_token
    switch, compiled = cell.settings.speedups, cell.tuned and cell.settings.train.compile
    layout, states = speedups.enable(model, switch, pad, cell.accelerator, by_token, compiled)
    cell.speedups.update(states)
    config = structure.inner(model).config
    cell.model_facts["attention"] = config._attn_implementation
    guess = cell.objective.of_a_guess(config.get_text_config().vocab_size)
    validation = cell.objective.batches(layout, cell.inputs.held_out, cell.batch_size)
    result.held_out = cell.inputs.answers
    return model, Loaded(parameters, adapters, layout, validation, guess)


def adapted_model(cell: LocalCell, phase: str, on: torch.device) -> tuple[nn.Module, frozenset[str]]:
    """The model, loaded on the device `on` and adapted, and the names of the parameters that the method added."""
    if isinstance(cell.objective, PairObjective):
        with cell.entered(phase):
            base = loading.load(cell.cell, on)
        pairs.refer_to(cell, cell.objective, base)
        with cell.entered("adapt") as see:
            return _adapted(cell, base, see)
    with cell.entered(phase) as see:
        return _adapted(cell, loading.load(cell.cell, on), see)


def _adapted(cell: LocalCell, base: PreTrainedModel, see: Callable[[Any], None]) -> tuple[nn.Module, frozenset[str]]:
    cell.model_facts.update(structure.describe(base))
    own = {id(p) for p in base.parameters()}
    model = adapting.adapt(base, cell.cell, partial(cell.inputs.samples, cell.accelerator.device))
    see(list(model.parameters()))
    cell.holders.set_model(model)
    adapters = frozenset(name for name, p in model.named_parameters() if id(p) not in own)
    adapter_ids(cell, model, adapters)
    return model, adapters


def adapter_ids(cell: LocalCell, model: nn.Module, names: frozenset[str]) -> set[int]:
    """The ids of the parameters `names` of `model`, of which the account of a shortage is told."""
    ids = {id(p) for name, p in model.named_parameters() if name in names}
    cell.holders.set_adapters(ids)
    return ids
