"""Adapts a loaded model by the method's slots `adapt` and `init`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from hydra.utils import instantiate
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from harness.errors import UserError, first_line
from harness.job.data.batching import Batch
from harness.job.methods.dora import exact_magnitudes
from harness.job.models import targets
from harness.job.models.structure import count, freeze_senses, stacks
from harness.job.models.weight_only import is_torchao
from harness.record import Cell

Samples = Callable[[int], Iterator[Batch]]  # padded training batches of a number of sequences, in training order
# Fields of peft configs that seed generators of their own. Their defaults are constants, so set_seed changes nothing.
SEEDS = ("projection_prng_key", "projection_seed", "proj_seed", "random_loc_seed", "random_seed")
OF_WHOLE_WEIGHTS = ("pissa", "corda", "lora_ga", "mica")  # starts by how their names begin


def adapt(base: PreTrainedModel, cell: Cell, samples: Samples | None = None, saved: Path | None = None) -> nn.Module:
    """Adapt `base` by the method's `adapt` slot. Returns a peft model, or `base` itself.

    samples: training data for an initialiser (slot `init`) that needs it. Without samples, or without values, the
        adapter gets peft's plain initialisation.
    saved: the folder of a saved adapter, which is loaded with the shapes that training gave it.
    Raises ValueError for what can't be adapted, or not so.
    """
    slots = cell.settings.method
    if slots.adapt is None:
        freeze_senses(base)
        return base
    change = instantiate(slots.adapt, _convert_="all")
    if not isinstance(change, peft.PeftConfig):
        adapted = change(base)
        freeze_senses(base)
        return adapted
    _seed(change, cell)
    if getattr(change, "layer_replication", None):
        raise ValueError("layer_replication makes a deeper model of the base, which the base can't be compared with")
    experts, wanted, start = stacks(base), targets.apply(change, base), getattr(change, "init_lora_weights", None)
    _check_quantised(base, start)
    try:
        with _compilers_kept():
            net = _adapted(base, change, slots.init, samples, saved)
    except ValueError as error:
        if not (experts and getattr(change, "target_parameters", None)):
            raise
        reason = first_line(error).rstrip(".")
        raise ValueError(
            f"{reason}; without method.adapt.target_parameters it leaves out the experts, and method=lora adapts them."
        ) from error
    if experts:
        _check_reach(net, wanted)
    _check_biases(net)
    _check_start(net, change, start)
    _check_blocks(net, change)
    if saved is None:
        exact_magnitudes(net)
    if base.dtype is torch.float32:
        for layer in _frozen(net):
            layer.register_forward_hook(_whole)
    return net


def _seed(config: peft.PeftConfig, cell: Cell) -> None:
    """Have what `config` draws by generators of its own follow the cell's seeds, unless its file gives a seed."""
    method = cell.settings.method
    seed = cell.settings.seed if method.init_seed is None else method.init_seed
    for name in SEEDS:
        if hasattr(config, name) and name not in (method.adapt or {}):
            setattr(config, name, seed)


def changes_base(cell: Cell) -> bool:
    """Whether the method's `adapt` slot may leave other weights in the base than were loaded, as PiSSA does."""
    if cell.settings.method.adapt is None:
        return False
    change = instantiate(cell.settings.method.adapt, _convert_="all")
    if not isinstance(change, peft.PeftConfig):
        return True
    start = getattr(change, "init_lora_weights", True)
    return isinstance(start, str) and start not in ("gaussian", "orthogonal")


@contextmanager
def _compilers_kept() -> Iterator[None]:
    """Puts CC and CXX back as they were.

    peft leaves both at gcc where it can't build BOFT's CUDA kernel. What torch.compile then compiles is not linked to
    the C++ library, and can't be loaded.
    """
    before = {name: os.environ.get(name) for name in ("CC", "CXX")}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _adapted(
    base: PreTrainedModel,
    config: peft.PeftConfig,
    init: dict[str, Any] | None,
    samples: Samples | None,
    saved: Path | None,
) -> nn.Module:
    if saved is not None:
        _check_kind(config, saved)
        return peft.PeftModel.from_pretrained(base, str(saved))
    if init is not None and samples is not None:
        return instantiate(init, _convert_="all")(base, config, samples)
    valueless = init is not None or base.device.type == "meta"
    return peft.get_peft_model(base, plain(config) if valueless else config)


def _check_kind(config: peft.PeftConfig, saved: Path) -> None:
    """Raise UserError if the adapter in `saved` is of another kind than the method's `config`.

    Some kinds load further adapters from where their own config says.
    """
    kind = peft.PeftConfig.from_pretrained(str(saved)).peft_type
    if kind != config.peft_type:
        raise UserError(f"{saved} has an adapter of the kind {kind}; its method makes {config.peft_type}.")


def plain(config: peft.PeftConfig) -> peft.PeftConfig:
    """`config` with peft's plain initialisation: for weights without values, or an adapter that gets its own later."""
    if hasattr(config, "init_lora_weights") and isinstance(config.init_lora_weights, str):
        config.init_lora_weights = True
    return config


def only(model: PreTrainedModel, names: str) -> PreTrainedModel:
    """Freeze all weights of `model` except those whose name matches the regular expression `names`."""
    for name, p in model.named_parameters():
        p.requires_grad_(re.search(names, name) is not None)
    if not count(model, trainable=True):
        raise ValueError(f"no weight's name matches {names}")
    return model


def _check_start(net: nn.Module, config: peft.PeftConfig, start: object) -> None:
    """Raise ValueError if the adapters of `net` can't begin by `start`, or not as the untuned model.

    peft computes olora of a matrix which GPT-2 and its like store transposed. LoRA-GA gives A and B other directions of
    each gradient, so it needs two for each rank. Reflections of HRA leave the model as it is where they come in pairs.
    """
    transposed = any(getattr(layer, "fan_in_fan_out", False) for layer in net.modules())
    if transposed and start == "olora":
        raise ValueError("olora takes no layers that are stored as (in, out), as GPT-2's are; use pissa")
    rank: int = getattr(config, "r", 0)
    if start == "lora_ga":
        layers = (m for m in net.modules() if isinstance(m, LoraLayer) and not isinstance(m, ParamWrapper))
        most = min((min(layer.get_base_layer().get_parameter("weight").shape) // 2 for layer in layers), default=rank)
        if rank > most:
            raise ValueError(f"rank must be at most {most}, half the size of the smallest matrix, got rank={rank}")
    if isinstance(config, peft.HRAConfig) and rank % 2:
        raise ValueError(f"rank must be even, so that reflections cancel out at first, got rank={rank}")


def _check_quantised(base: PreTrainedModel, start: object) -> None:
    """Raise ValueError for a `start` that peft does not compute of the packed weights of `base`."""
    if not isinstance(start, str) or not getattr(base, "is_quantized", False):
        return
    if start.startswith(OF_WHOLE_WEIGHTS):
        raise ValueError(f"init_lora_weights={start} requires weights that are not quantised; use method=lora")
    if start == "olora" and any(is_torchao(weight) for weight in base.parameters()):
        raise ValueError("olora takes no weights in int8wo or fp8wo; use method=lora_8bit or method=qlora")


def _check_blocks(net: nn.Module, config: peft.PeftConfig) -> None:
    """Raise ValueError if OFT's blocks have another size than in `config`: where it does not fit, peft only warns."""
    size = config.oft_block_size if isinstance(config, peft.OFTConfig) else 0
    for name, layer in net.named_modules() if size else ():
        sizes: dict[str, int] = getattr(layer, "oft_block_size", {})
        if any(actual != size for actual in sizes.values()):
            raise ValueError(
                f"oft_block_size must divide the inputs of every matrix, {layer.in_features} of "
                f"{name.removeprefix('base_model.model.')}, got {size}"
            )


def _check_biases(net: nn.Module) -> None:
    """Raise ValueError for a bias of LoRA's at a layer without one: after training it can't be merged."""
    for name, layer in net.named_modules():
        own = isinstance(layer, LoraLayer) and any(layer.lora_bias.values())
        if own and getattr(layer.get_base_layer(), "bias", None) is None:
            raise ValueError(
                f"lora_bias=true requires layers that have a bias, unlike {name.removeprefix('base_model.model.')}"
            )


def _check_reach(net: nn.Module, wanted: dict[str, nn.Parameter]) -> None:
    """Raise ValueError if a weight that `all-linear` covers got no adapter."""
    layers = (module.get_base_layer() for module in net.modules() if isinstance(module, BaseTunerLayer))
    reached = {id(weight) for layer in layers for weight in layer.parameters(recurse=False)}
    missed = [name for name, weight in wanted.items() if id(weight) not in reached]
    reachable = wanted.keys() - {*missed}
    if missed:
        raise ValueError(
            f"peft adapts only some matrices: {len(missed)} of {len(wanted)} have no adapter, such as {missed[0]}; set "
            f"'method.adapt.target_modules=[{targets.leaves(reachable)}]'."
        )


def _whole(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Cast a frozen layer's output to fp32 before an adapter adds to it.

    Autocast rounds the output to bf16, and a sum in bf16 loses what is smaller than half its last place. A new adapter
    adds that little, and would learn measurably slower in a model whose other sums are in fp32.
    """
    return output.float()


def forget_adapters(net: nn.Module) -> None:
    """Remove what `adapt` added to frozen layers, once their adapters are gone."""
    for module in net.modules():
        module._forward_hooks = type(module._forward_hooks)(
            (key, hook) for key, hook in module._forward_hooks.items() if hook is not _whole
        )


def _frozen(net: nn.Module) -> list[nn.Module]:
    """The layers whose outputs adapters add to. Adapters of a stack add to its weights instead."""
    layers = (module for module in net.modules() if isinstance(module, BaseTunerLayer))
    return [layer.get_base_layer() for layer in layers if not isinstance(layer, ParamWrapper)]
