"""Which layers of a model get adapters where a method says `all-linear`, in every family of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel

from harness.job.methods import optimizers
from harness.job.models.quantisation import packed_experts
from harness.job.models.structure import count, inner, language_model, mamba_blocks, senses, size, stacks
from harness.record import Cell

EVERYWHERE = "all-linear"


def covered(base: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The matrices by module name that `all-linear` means in `base`: those of linear layers, except

    - the head and gates, which have one output (as of an expert that all tokens share);
    - parts of decoder layers that hold experts in any layer: a mixture's routed, shared and dense MLPs, whose names
      peft takes for those of the experts;
    - a Mamba block's layers but the first: its kernels read their weights and never call them, so that an adapter
      beside them would get no gradient;
    - what text does not pass through, such as a vision tower.
    """
    others, gates = senses(base), optimizers.gates_of(base)
    blocks, mixers = _expert_blocks(base), mamba_blocks(base)

    def adapted(name: str) -> bool:
        owner, _, own = name.rpartition(".")
        if name in others or name in gates or name.startswith(blocks):
            return False
        return owner not in mixers or own == "in_proj"

    return {name: weight for name, weight in optimizers.matrices_of(base).items() if adapted(name)}


def apply(change: peft.PeftConfig, base: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name in `change` the layers of `base` that it means. Returns the weights that it has to reach: none unless it
    says `all-linear`.

    Layers that text does not pass through get no adapter, whatever names `change` has. Raises ValueError if it names
    experts that are not there, or that peft can't adapt.
    """
    settings: Any = change  # what a kind of adapter lacks, it has no field for
    if getattr(change, "target_modules", None) != EVERYWHERE:
        others, own = senses(base), getattr(change, "exclude_modules", None)
        if others and hasattr(change, "exclude_modules") and not isinstance(own, str):
            settings.exclude_modules = {*(own or ()), *others}
        return {}
    wanted, experts, named = covered(base), experts_of(base), getattr(change, "target_parameters", None)
    if experts or wanted.keys() != optimizers.matrices_of(base).keys():
        settings.target_modules = {*wanted}  # of a mixture peft would take routers too
    if not named:
        return wanted
    ends = tuple(f".{name}" for name in named)
    chosen_stacks = {name: weight for name, weight in experts.items() if f".{name}".endswith(ends)}
    if not chosen_stacks:
        raise ValueError(
            f"method.adapt.target_parameters must name stacks of experts, such as [{','.join(_endings(experts))}], got "
            f"[{','.join(named)}]"
        )
    if chosen_stacks.keys() & packed_experts(base).keys():
        raise ValueError(
            "peft adapts experts in 16 bits alone; use method=lora, or leave out method.adapt.target_parameters"
        )
    settings.target_parameters = {*chosen_stacks}
    return wanted | chosen_stacks


def experts_of(base: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The stacks of experts of `base` by name, packed ones among them."""
    return stacks(base) | packed_experts(base)


def left_out(net: nn.Module, cell: Cell) -> str | None:
    """What the cell's adapters leave as it is in `net`, which they adapt, though its method says `all-linear`: a
    mixture's experts. A sentence with the setting that adapts them; None if nothing is left out."""
    slot = cell.settings.method.adapt or {}
    if not isinstance(net, peft.PeftModel) or slot.get("target_modules") != EVERYWHERE or slot.get("target_parameters"):
        return None
    base, added = inner(net), f".{net.base_model.prefix}"  # how the names of what peft adds to a layer begin
    experts = {name: weight for name, weight in experts_of(base).items() if added not in name}
    if not experts:
        return None
    share, path = sum(size(weight) for weight in experts.values()) / count(base), cell.settings.model.path
    sentence = f"method={cell.method} leaves the experts of {path} as they are, {share:.0%} of the weights."
    if slot["_target_"] != "peft.LoraConfig" or slot.get("use_dora") or packed_experts(base):
        return sentence
    return f"{sentence} To adapt them, set '+method.adapt.target_parameters=[{','.join(_endings(experts))}]'."


def leaves(names: Iterable[str]) -> str:
    """The last parts of `names`, as a list of settings has them."""
    return ",".join(sorted({name.rpartition(".")[2] for name in names}))


def _endings(experts: Iterable[str]) -> list[str]:
    return sorted({".".join(name.split(".")[-2:]) for name in experts})


def _expert_blocks(base: PreTrainedModel) -> tuple[str, ...]:
    """How the names of the modules begin that are experts or lie beside them: a decoder layer's part that holds
    experts, in that layer or in another."""
    language = language_model(base)
    names = {name for name, module in base.named_modules() if module is language}
    prefix = "".join(f"{name}." for name in names if name)
    layers = {name: layer for name, layer in language.named_modules() if name.rpartition(".")[2].isdigit()}
    parts = {part for layer in layers.values() for part, block in layer.named_children() if stacks(block)}
    parts |= {name.split(".")[0] for layer in layers.values() for name in packed_experts(layer)}
    return tuple(f"{prefix}{layer}.{part}." for layer in layers for part in parts)
