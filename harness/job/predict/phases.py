"""What each phase of a sharded cell takes of a device, and what the cell takes of each machine's own memory.

Only training divides the model by rank. The first machine's host reads it and, after training, keeps what was tuned
until the whole model lies on one device, or divided over those of that machine: see job/models/placement.py.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig

from harness.job.models import adapting, placement, structure
from harness.job.models.quantisation import quant_states
from harness.record import Cell


def sizes(cell: Cell, net: nn.Module, config: PretrainedConfig, added: set[str]) -> dict[str, int]:
    """Bytes of `net` before it is sharded, each linear in the number of layers: of the whole model, of what is gathered
    after training, of a layer and of the largest tensor. added: names of the adapters' parameters."""
    weights = sum(p.nbytes for p in net.parameters())
    scales = sum(_scales(module) for module in net.modules())
    if adapting.changes_base(cell) or scales:
        gathered = weights
    else:
        gathered = sum(p.nbytes for name, p in net.named_parameters() if p.requires_grad or name in added)
    layers = structure.decoder_layers(net, config) or [net]
    return {
        "whole_bytes": weights + scales,
        "gathered_bytes": gathered,
        "layer_bytes": max(sum(p.nbytes for p in layer.parameters()) for layer in layers),
        "tensor_bytes": max(p.nbytes for p in net.parameters()),
    }


def _scales(module: nn.Module) -> int:
    values = [value for state in quant_states(module) for value in vars(state).values()]
    return sum(value.nbytes for value in values if hasattr(value, "nbytes"))


def devices(
    cell: Cell, config: PretrainedConfig, figures: dict[str, float], peak: float, budget: int | None
) -> dict[str, int]:
    """Bytes that each phase of the sharded `cell` takes of the device that it takes most of, by name.

    figures: of its prediction: `sizes`, and what is resident in training. peak: of training. budget: bytes of a device
    (null: it is one that can hold the model).
    """
    train, infer = cell.settings.train, cell.settings.infer
    share = figures["resident:weights"] + figures["resident:adapters"]
    copied = train.precision == "bf16" and cell.settings.model.dtype == "float32"  # once more, in 16 bits, to compute
    whole, parts = figures["whole_bytes"] * (1.5 if copied else 1), 1
    if budget is not None and whole > placement.ROOM * budget:
        parts = train.devices
    weights = whole
    if parts > 1:  # layers are not cut
        weights = max(whole / parts + figures["layer_bytes"], whole / parts / placement.ROOM_DIVIDED)
    by_phase = {"load": share + figures["tensor_bytes"], "train": peak}
    if infer.repeats:
        timed = infer.timed()
        rows = max(timed.batch_size, timed.large_batch_size or 0)
        tokens = rows * (timed.prompt_tokens + timed.new_tokens)
        by_phase["infer"] = weights + tokens * _cache_bytes(config, 2 if train.precision == "bf16" else 4) / parts
    if cell.settings.method.adapt is not None:
        by_phase["merge"] = weights + 2 * figures["tensor_bytes"]  # the merged weight beside it, and its difference
    if cell.settings.eval.tasks:
        by_phase["score"] = weights
    return {name: round(value) for name, value in by_phase.items()}


def _cache_bytes(config: PretrainedConfig, itemsize: int) -> int:
    """Bytes of the keys and values of a token."""
    text: Any = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size * itemsize


def hosts(cell: Cell, figures: dict[str, float], by_phase: dict[str, int], on_host: bool) -> dict[str, int]:
    """Bytes that the sharded `cell` takes of the memory of its `first` machine and of each of its `others`, beside its
    processes. on_host: whether the devices are a CPU's processes, so that what they hold counts too."""
    devices = cell.settings.train.devices if on_host else 0
    after = max((size for name, size in by_phase.items() if name not in ("load", "train")), default=0) if on_host else 0
    first = max(
        figures["whole_bytes"] + devices * by_phase["load"],
        devices * by_phase["train"],
        figures["gathered_bytes"] + after,
    )
    others = devices * max(by_phase["load"], by_phase["train"])
    return {"first": round(first), "others": round(others)}
