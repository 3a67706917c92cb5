"""What `litgpt finetune` of Lightning-AI/litgpt does with the configurations in config_hub/finetune.

Its own decoder (programs.litgpt_model), no checkpointing. Weights, adapters and moments in bf16 (bf16-true), head and
embedding apart. AdamW of torch. Of LoRA and QLoRA the head's logits in chunks of 128 tokens; Fabric casts them to fp32,
and they stand, with their graph, until the next step's replace them. QLoRA packs all matrices, the head too, as NF4
with fp32 scales; moments are paged, which torch's allocator does not hand out. It reports
torch.cuda.max_memory_allocated in 10^9 bytes.

A step and the one before are taken to have rows of the greatest length, so that a prediction is of the worst order of
batches. The rows were published by 27 September 2024 (00af8b0); the embedding of bitsandbytes that QLoRA has since
(ae798ab, 4 October) was not in what they measured.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from harness import units
from harness.errors import UserError
from harness.job.methods.adamw import PagedAdamW
from programs.decoder import quantise
from programs.litgpt_hub import config, hub_file
from programs.litgpt_model import Adapters, Gpt, Linear042
from programs.rows import Row
from programs.step import Predicted, Program

DROPOUT = 0.05  # of most files


def program(row: Row) -> Program[Gpt]:
    """Raises UserError if the row lacks a setting or asks for what is not modelled."""
    if row.method not in ("full", "lora", "qlora"):
        raise UserError(f"method must be full, lora or qlora, got {row.method}.")
    if not row.tokens_per_row:
        raise UserError("A prediction requires tokens_per_row.")
    packed = row.method == "qlora"
    return Program(
        build=partial(_build, row, _adapters(row)),
        loss=_loss if row.method == "full" else _chunked_loss,
        optimizer=partial(PagedAdamW, lr=1e-4) if packed else partial(torch.optim.AdamW, lr=1e-4, foreach=True),
        depth=config(row.model).depth,
        rows=_micro_batch(row),
        tokens=row.tokens_per_row,
        autocast=False,
        clip=False,
        checkpointed=False,
        workspaces=row.workspaces,
        micro_batches=2,
        columns=2,
    )


def _micro_batch(row: Row) -> int:
    """Of the row, else of the repository's file. Raises UserError if neither has it."""
    file = hub_file(row.model, row.method)
    if not (size := row.micro_batch or (file and file.micro_batch)):
        raise UserError("A prediction requires micro_batch.")
    return size


def _adapters(row: Row) -> Adapters | None:
    """Of the row, else of the repository's file. Raises UserError if neither has them."""
    if row.method == "full":
        return None
    file = hub_file(row.model, row.method)
    known = file.adapters if file else None
    if row.targets not in (None, "q,v", "all linear"):
        raise UserError(f"targets must be q,v or all linear, got {row.targets}.")
    if known is None:
        if not (row.rank and row.targets):
            raise UserError("A prediction of an adapter requires rank and targets.")
        return Adapters(row.rank, DROPOUT, row.targets == "all linear")
    everywhere = row.targets == "all linear" if row.targets else known.everywhere
    return Adapters(row.rank or known.rank, known.dropout, everywhere)


def unknown(row: Row, predicted: Predicted) -> str | None:
    """See programs.compare.Reading."""
    steady = sum(predicted.resident.values()) + 2 * predicted.trained  # gradients stand while moments do
    if row.method == "full" and row.peak_bytes < steady:
        return (
            f"weights, gradients and moments of the configuration's AdamW are {units.size(steady)}, more than was "
            "published, so the run had another optimizer."
        )
    return None


def why(row: Row, predicted: Predicted) -> str | None:
    """See programs.compare.Reading."""
    if row.method != "lora" or not row.tokens_per_row or row.peak_bytes > predicted.peak_bytes:
        return None
    before = 4 * _micro_batch(row) * row.tokens_per_row * config(row.model).vocabulary
    return (
        f"The prediction is of the worst order of batches: {units.size(before)} of it are logits of the step before, "
        "whose rows may have been shorter."
    )


def _build(row: Row, adapters: Adapters | None, depth: int) -> Gpt:
    with torch.device("meta"):
        net = Gpt(config(row.model), adapters, depth).to(torch.bfloat16)
        if adapters:
            for name, p in net.named_parameters():
                p.requires_grad_("lora_" in name)
        if row.method == "qlora":
            quantise(net, net, double=False, layer=Linear042, source=torch.float16)
    return net


def _loss(net: Gpt, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = net.lm_head(net(ids)).float()  # Fabric's convert_output
    shifted, targets = logits[..., :-1, :].reshape(-1, logits.shape[-1]), labels[..., 1:].reshape(-1)
    parts = zip(shifted.split(128), targets.split(128), strict=True)
    losses = [functional.cross_entropy(part, target, reduction="none") for part, target in parts]
    return torch.cat(losses).sum() / targets.numel(), logits


def _chunked_loss(net: Gpt, ids: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    logits = [net.lm_head(part) for part in net(ids).split(128, dim=1)]
    logits = [part.float() for part in logits]  # Fabric's convert_output
    logits[-1] = logits[-1][..., :-1, :]
    parts = [part.reshape(-1, part.shape[-1]) for part in logits]
    targets = [part.reshape(-1) for part in labels[..., 1:].split(128, dim=1)]
    pairs = zip(parts, targets, strict=True)
    losses = [functional.cross_entropy(part, target, reduction="none") for part, target in pairs]
    return torch.cat(losses).sum() / labels.numel(), logits
