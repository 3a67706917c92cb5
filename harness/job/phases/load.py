"""Loads and adapts a cell's model, and enables what makes it faster without changing its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.job import pairs, speedups
from harness.job.data.batching import Batch, Layout
from harness.job.local_cell import LocalCell
from harness.job.models import adapting, empty_weights, loading, structure, targets
from harness.job.training.objectives import PairObjective
from harness.record import Parameters, Record

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Loaded:
    """What follows from the loaded and adapted model.

    adapters: names of the parameters that the method added. layout: of batches. validation: the batches of the
    validation loss. guess: the loss of a uniform guess over the vocabulary, in nats. size: bytes of the whole weights.
    """

    parameters: Parameters
    adapters: frozenset[str]
    layout: Layout
    validation: list[Batch]
    guess: float
    size: int


def load(cell: LocalCell, result: Record) -> tuple[nn.Module, Loaded]:
    """The adapted model, and what follows from it.

    Of a model that is to be sharded the first device reads the weights, on its host, as they may be too many for one
    device. The others have it on "meta".
    """
    if not cell.sharded:
        model, adapters = _base_adapted(cell, cell.accelerator.device)
    elif cell.accelerator.is_main_process:
        model, adapters = _base_adapted(cell, HOST)
    else:
        model, adapters = _without_weights(cell)
    trainable = structure.count(model, trainable=True) if cell.tuned else 0
    result.parameters = parameters = Parameters(structure.count(model), trainable)
    pad, by_token = cell.inputs.tokenizer.pad_token_id, cell.objective.by_token
    switch, compiled = cell.settings.speedups, cell.tuned and cell.settings.train.compile
    with _valueless(model) if next(model.parameters()).is_meta else nullcontext():
        layout, states = speedups.enable(model, switch, pad, cell.accelerator, by_token, cell.sharded, compiled)
    cell.speedups.update(states)
    config = structure.inner(model).config
    cell.model_facts["attention"] = config._attn_implementation
    guess = cell.objective.of_a_guess(config.get_text_config().vocab_size)
    validation = cell.objective.batches(layout, cell.inputs.held_out, cell.batch_size)
    result.held_out = cell.inputs.answers
    size = sum(p.nbytes for p in model.parameters())
    return model, Loaded(parameters, adapters, layout, validation, guess, size)


def _base_adapted(cell: LocalCell, on: torch.device) -> tuple[nn.Module, frozenset[str]]:
    """As `adapted_model`, after the objective has taken what it needs of the base."""
    if not isinstance(cell.objective, PairObjective):
        return adapted_model(cell, "load", on)
    with cell.entered("load"):
        base = loading.load(cell.cell, on)
    pairs.refer_to(cell, cell.objective, base)
    with cell.entered("adapt") as see:
        return _adapted(cell, base, see)


def _without_weights(cell: LocalCell) -> tuple[nn.Module, frozenset[str]]:
    """As `_base_adapted`, on "meta"; a method that needs values to be applied is applied to them here too."""
    try:
        with cell.entered("load"):
            model, adapters = empty_weights.shell(cell.cell, loading.config_of(cell.settings.model))
    except empty_weights.NeedsValues:
        return _base_adapted(cell, HOST)
    cell.model_facts.update(structure.describe(model))
    cell.holders.set_model(model)
    return model, frozenset(adapters)


@contextmanager
def _valueless(model: nn.Module) -> Iterator[None]:
    """A context in which a `model` on "meta" computes, though not with values.

    torch knows the shapes of the products of experts in groups in bf16 alone, so they are computed one by one here.
    """
    net = structure.inner(model)
    experts = net.get_experts_implementation()
    net.set_experts_implementation("batched_mm" if structure.stacks(net) else experts)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        net.set_experts_implementation(experts)


def adapted_model(
    cell: LocalCell, phase: str, on: torch.device, over: dict[int, int] | None = None
) -> tuple[nn.Module, frozenset[str]]:
    """The model, loaded on the device `on` and adapted, and the names of the parameters that the method added.

    over: of one that is divided over devices, bytes that each may get.
    """
    with cell.entered(phase) as see:
        return _adapted(cell, loading.load(cell.cell, on, over), see)


def _adapted(cell: LocalCell, base: PreTrainedModel, see: Callable[[Any], None]) -> tuple[nn.Module, frozenset[str]]:
    cell.model_facts.update(structure.describe(base))
    own = {id(p) for p in base.parameters()}
    model = adapting.adapt(base, cell.cell, partial(cell.inputs.samples, cell.accelerator.device))
    see(list(model.parameters()))
    cell.holders.set_model(model)
    if (auto_class := loading.auto_class(structure.inner(model).config)) is not AutoModelForCausalLM:
        cell.model_facts["auto_class"] = auto_class.__name__
    if (experts := targets.left_out(model, cell.cell)) is not None:
        cell.model_facts["left_out"] = experts
    adapters = frozenset(name for name, p in model.named_parameters() if id(p) not in own)
    adapter_ids(cell, model, adapters)
    return model, adapters


def adapter_ids(cell: LocalCell, model: nn.Module, names: frozenset[str]) -> set[int]:
    """The ids of the parameters `names` of `model`, of which the account of a shortage is told."""
    ids = {id(p) for name, p in model.named_parameters() if name in names}
    cell.holders.set_adapters(ids)
    return ids
