"""What `swift sft` of modelscope/ms-swift does in its benchmark of tuners (scripts/benchmark/config/tuner.json).

transformers' Trainer on the model's own code, under autocast to bf16; batch size 1 of at most 2048 tokens; the loss
with weights of tokens (loss-scale), on the fp32 logits that accelerate returns; the foreach step of AdamW. It reports
torch.cuda.max_memory_reserved (swift/trainers/mixin.py), so what the allocator took from the device, fragments and
cached blocks of rows of other lengths included; the prediction is of allocated bytes, the least that it needs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from harness.errors import UserError
from programs.architectures import architecture
from programs.decoder import Architecture, Code, Decoder, Layer, Norm, adapt, kept, reentrant
from programs.rows import Row
from programs.step import Predicted, Program

ROWS, TOKENS = 1, 2048  # tuner.json: batch_size, max_length
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # lora_target_modules=ALL
GAP = 200  # galore_update_proj_gap


def program(row: Row) -> Program[Decoder]:
    """Raises UserError if the row lacks a setting or asks for what is not modelled."""
    known = ("full", "galore", "lora", "dora", "adalora", "loraplus")
    if row.method not in known:
        raise UserError(f"method must be one of {', '.join(known)}, got {row.method}.")
    if row.method != "full" and not row.rank:
        raise UserError("A prediction requires rank.")
    of = architecture(row.model)
    optimizer: Any = partial(torch.optim.AdamW, lr=1e-4, foreach=True)
    if row.method == "galore":
        optimizer = partial(_galore, row.adapter_rank, "embeddings" in row.notes, of)
    return Program(
        build=partial(_build, of, row),
        loss=_loss,
        optimizer=optimizer,
        depth=of.depth,
        rows=row.micro_batch or ROWS,
        tokens=row.tokens_per_row or TOKENS,
        autocast=True,
        clip=True,
        checkpointed=row.gradient_checkpointing,
        workspaces=row.workspaces,
    )


def why(row: Row, predicted: Predicted) -> str:
    """See programs.compare.Reading."""
    return (
        "It reports what the allocator reserved (max_memory_reserved, swift/trainers/mixin.py), not what it handed out."
    )


def _build(of: Architecture, row: Row, depth: int) -> Decoder:
    run = reentrant if row.gradient_checkpointing else kept
    with torch.device("meta"):
        net = Decoder(of, depth, lambda: Layer(of, Code()), Norm, run).to(torch.bfloat16)
        if row.method in ("full", "galore"):
            return net
        if row.method == "adalora":
            config: peft.PeftConfig = peft.AdaLoraConfig(
                init_r=12,
                target_r=row.adapter_rank,
                lora_alpha=32,
                lora_dropout=0.05,
                target_modules=LINEAR,
                total_step=1000,
            )
        else:
            config = peft.LoraConfig(
                r=row.adapter_rank,
                lora_alpha=32,
                lora_dropout=0.05,
                target_modules=LINEAR,
                use_dora=row.method == "dora",
            )
        adapt(net, config)
    return net


def _galore(rank: int, embeddings: bool, of: Architecture, trained: list[nn.Parameter]) -> Optimizer:
    from galore_torch import GaLoreAdamW  # it imports much

    def projected(p: nn.Parameter) -> bool:
        return p.ndim == 2 and (embeddings or len(p) != of.vocabulary)

    groups = {"rank": rank, "update_proj_gap": GAP, "scale": 1.0, "proj_type": "std"}
    plain = {"params": [p for p in trained if not projected(p)]}
    return GaLoreAdamW(
        [plain, {"params": [p for p in trained if projected(p)], **groups}], lr=1e-4, no_deprecation_warning=True
    )


def _loss(net: Decoder, ids: Tensor, labels: Tensor) -> tuple[Tensor, None]:
    hidden = net(ids)
    logits = net.lm_head(hidden)
    del hidden
    logits = logits.float()  # accelerate's convert_outputs_to_fp32
    shifted, targets = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous().view(-1)
    losses = functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets, reduction="none")
    return losses.mean(), None
