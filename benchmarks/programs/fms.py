"""What the benchmark of foundation-model-stack/fms-acceleration does (scripts/benchmarks).

transformers' Trainer, peft's adapters in fp32, NF4 with double quantisation or GPTQ of the layers' matrices, AdamW of
torch with its foreach step, checkpointing in the reentrant form, FlashAttention 2, rows packed to 4096 tokens. It
reports what torch's allocator handed out. Its files of references were made with two versions:

- a100_80gb.csv: transformers 4.48. 16-bit logits stand beside their fp32 copy. Autocast to bf16 only with a quantised
  model (scenarios.yaml).
- a100_80gb_liger.csv: transformers 4.45. The fp32 logits take the place of the 16-bit ones, keys and values are
  repeated before the kernel, and everything runs under autocast (scenarios-liger.yaml).
- a100_80gb_granite.csv: transformers 4.45 too, autocast as in the first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peft
import torch
from torch import Tensor

from harness.errors import UserError
from programs import gptq
from programs.architectures import architecture
from programs.decoder import Code, Decoder, Layer, Norm, adapt, quantise, reentrant, rotated
from programs.fused_kernels import (
    FusedNorm,
    fused_cross_entropy,
    fused_out,
    fused_qkv,
    liger_loss,
    plain_cross_entropy,
    rotated_in_place,
)
from programs.rows import Row
from programs.step import Program

DROPOUT = 0.1  # scenarios.yaml
NAMES = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def program(row: Row) -> Program[Decoder]:
    """Raises UserError if the row lacks a setting or asks for what is not modelled."""
    if row.method not in ("full", "lora", "qlora"):
        raise UserError(f"method must be full, lora or qlora, got {row.method}.")
    if not row.micro_batch or not row.tokens_per_row:
        raise UserError("A prediction requires micro_batch and tokens_per_row.")
    if row.method != "full" and not (row.rank and row.targets):
        raise UserError("A prediction of an adapter requires rank and targets.")
    if not row.gradient_checkpointing:
        raise UserError("gradient_checkpointing must be true, as in the benchmark's defaults.yaml.")
    if unknown := set(_targets(row)) - set(NAMES):
        raise UserError(f"targets must be some of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}.")
    earlier, packed = "liger" in row.source or "granite" in row.source, row.method == "qlora"
    fused, liger = "fused kernels" in row.notes, "Liger loss" in row.notes
    code = Code(
        norm=FusedNorm if fused else Norm,
        rotate=rotated_in_place if fused else rotated,
        repeats=earlier,
        qkv=fused_qkv if fused and packed else None,
        out=fused_out if fused and packed else None,
    )
    cross_entropy = fused_cross_entropy if fused else plain_cross_entropy
    return Program(
        build=partial(_build, row, code),
        loss=liger_loss if liger else partial(_loss, cross_entropy, earlier),
        optimizer=partial(torch.optim.AdamW, lr=1e-4, foreach=True),
        depth=architecture(row.model).depth,
        rows=row.micro_batch,
        tokens=row.tokens_per_row,
        autocast=packed or "liger" in row.source,
        clip=True,
        checkpointed=True,
        workspaces=row.workspaces,
    )


def _targets(row: Row) -> list[str]:
    return [name.strip() for name in (row.targets or "").split(",") if name.strip()]


def _gptq(row: Row) -> bool:
    return "gptq" in f"{row.notes} {row.model}".lower()


def _build(row: Row, code: Code, depth: int) -> Decoder:
    of = architecture(row.model)
    with torch.device("meta"):
        net = Decoder(of, depth, lambda: Layer(of, code), code.norm, reentrant).to(torch.bfloat16)
        if row.method == "full":
            return net
        if row.method == "qlora" and _gptq(row):
            gptq.quantise(net.layers, row.model)
        elif row.method == "qlora":
            quantise(net, net.layers)
        targets = [NAMES[name] for name in _targets(row)]
        rank = row.adapter_rank
        adapt(net, peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=DROPOUT, target_modules=targets))
        if "prepare_model_for_kbit_training" in row.notes:
            # It upcasts norms, embedding and head; then trl's peft_module_casting_to_bf16 casts all but norms back.
            for name, module in net.named_modules():
                if "norm" in name:
                    module.float()
    return net


def _loss(
    cross_entropy: Callable[[Tensor, Tensor], Tensor], earlier: bool, net: Decoder, ids: Tensor, labels: Tensor
) -> tuple[Tensor, None]:
    """Transformers' loss over all positions, in fp32."""
    hidden = net(ids)  # held until the model returns
    logits = net.lm_head(hidden)
    if net.of.scaled:
        logits = logits / 2.0
    whole = logits.float()
    if earlier:
        logits = whole
    shifted, targets = whole[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
    shifted, targets = shifted.view(-1, shifted.shape[-1]), targets.view(-1)
    return cross_entropy(shifted, targets), None
