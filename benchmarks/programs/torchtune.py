"""What the single-device recipes of pytorch/torchtune do, for the table of optimization flags in its README.

Its own decoder at the commit that brought the table (1814feb17): rotary embedding of neighbours in fp32, keys and
values expanded for all heads, flex attention over packed rows, which keeps what FlashAttention keeps. Weights, adapters
and moments are in bf16. AdamW of torch in its fused form: the foreach one would need a temporary copy of the weights
and alone exceed the baseline. Without chunks the logits of all positions are cast to fp32 by the model, and their
cross-entropy is not compiled even with `compile`, as the recipe drops what compile_loss returns; in chunks it is. It
reports the peak of active bytes of torch's allocator.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import UserError
from harness.job.methods.adamw import EightBitAdamW
from programs.architectures import architecture
from programs.decoder import Architecture, Decoder, Mlp, Run, kept, quantise, recomputed
from programs.rows import Row
from programs.step import Predicted, Program

RANK = 64  # 3B_lora_single_device.yaml and 3B_qlora_single_device.yaml, on q, v, output and the MLP
CHUNKS = 8
# Techniques in the order of the table; each row has all before it, too.
TECHNIQUES = (
    "baseline",
    "packed rows",
    "compile",
    "chunked cross-entropy",
    "gradient checkpointing",
    "optimizer in backward",
    "activation offload",
    "8-bit AdamW",
)


def techniques(row: Row) -> set[str]:
    """What is on in `row`. Raises UserError if its notes name no technique."""
    if "all of the above" in row.notes:
        # The README: "except for LoRA and QLoRA, which do not use `optimizer_in_bwd` or `AdamW8bit` optimizer".
        return set(TECHNIQUES) - {"optimizer in backward", "8-bit AdamW"}
    for place, name in enumerate(TECHNIQUES):
        if row.notes.lower().rstrip().endswith(name.lower()):
            return set(TECHNIQUES[: place + 1])
    raise UserError(f"notes must end with one of {', '.join(TECHNIQUES)}, got {row.notes}.")


def program(row: Row) -> Program[Decoder]:
    """Raises UserError if the row lacks a setting or asks for what is not modelled."""
    if row.method not in ("full", "lora", "qlora"):
        raise UserError(f"method must be full, lora or qlora, got {row.method}.")
    if not row.micro_batch or not row.tokens_per_row:
        raise UserError("A prediction requires micro_batch and tokens_per_row.")
    of, on = architecture(row.model), techniques(row)
    if on == {"baseline"}:
        raise UserError("The length of the longest rows of Alpaca, which are not packed here, is unknown.")
    compiling = "compile" in on
    chunked, recomputing = "chunked cross-entropy" in on, "gradient checkpointing" in on
    run = recomputed if recomputing else kept
    optimizer: Any = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    if "8-bit AdamW" in on:
        optimizer = partial(EightBitAdamW, lr=1e-4)
    return Program(
        build=partial(_build, of, row, run, compiling),
        loss=partial(_loss, chunked, compiling, "activation offload" in on),
        optimizer=optimizer,
        depth=of.depth,
        rows=row.micro_batch,
        tokens=row.tokens_per_row,
        autocast=False,
        clip=False,
        checkpointed=recomputing,
        in_backward="optimizer in backward" in on,
        workspaces=row.workspaces,
        columns=4,  # positions and numbers of sequences, as rows are packed
    )


class _Norm(nn.Module):
    def __init__(self, width: int, compiling: bool = False):
        super().__init__()
        self.scale, self.compiling = nn.Parameter(torch.empty(width)), compiling

    def forward(self, hidden: Tensor) -> Tensor:
        if self.compiling:
            return _CompiledNorm.apply(hidden, self.scale)
        whole = hidden.float()
        normed = (whole * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(hidden)
        return normed * self.scale


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Of [rows, tokens, heads, head], whose neighbouring numbers are pairs."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    cos, sin = cos[..., : pairs.shape[-2]].transpose(1, 2), sin[..., : pairs.shape[-2]].transpose(1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.flatten(3).type_as(x)


def unknown(row: Row, predicted: Predicted) -> str | None:
    """See programs.compare.Reading."""
    if "8-bit AdamW" in techniques(row):
        return "the README does not say whether the 8-bit AdamW is bitsandbytes', as predicted, or torchao's."
    return None


class _CompiledNorm(torch.autograd.Function):
    """One kernel each way: kept are the input, its statistics and, as products need it, the result."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, scale, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = torch.empty_like(ctx.saved_tensors[1]) if ctx.needs_input_grad[1] else None
        return torch.empty_like(gradient), scale


class _CompiledRotation(torch.autograd.Function):
    """One kernel each way, of which nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.empty_like(gradient)


def _compiled_rotation(x: Tensor, _cos: Tensor, _sin: Tensor) -> Tensor:
    return _CompiledRotation.apply(x)


class _CompiledGate(torch.autograd.Function):
    """silu(gate) * up in one kernel each way: the activation itself is not kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(gradient), torch.empty_like(gradient)


class _Mlp(Mlp):
    def __init__(self, of: Architecture, compiling: bool):
        super().__init__(of)
        self.compiling = compiling

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.compiling:
            return super().forward(hidden)
        return self.down_proj(_CompiledGate.apply(self.gate_proj(hidden), self.up_proj(hidden)))


class _Lora(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.base_layer = linear
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base_layer(hidden) + 2.0 * self.lora_B(self.lora_A(hidden))


class _Attention(nn.Module):
    def __init__(self, of: Architecture, compiling: bool):
        super().__init__()
        self.of, self.rotate = of, _compiled_rotation if compiling else _rotated
        self.q_proj = nn.Linear(of.width, of.heads * of.head, bias=of.attention_bias)
        self.k_proj = nn.Linear(of.width, of.kv_heads * of.head, bias=of.attention_bias)
        self.v_proj = nn.Linear(of.width, of.kv_heads * of.head, bias=of.attention_bias)
        self.output_proj = nn.Linear(of.heads * of.head, of.width, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        of, shape = self.of, (*hidden.shape[:-1], -1, self.of.head)
        query = self.rotate(self.q_proj(hidden).view(shape), cos, sin).transpose(1, 2)
        key, value = self.k_proj(hidden).view(shape), self.v_proj(hidden).view(shape)
        key, value = self.rotate(key, cos, sin).transpose(1, 2), value.transpose(1, 2)
        if of.heads != of.kv_heads:
            groups = (-1, -1, of.heads // of.kv_heads, -1, -1)
            key, value = (x.unsqueeze(2).expand(groups).flatten(1, 2) for x in (key, value))
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output_proj(attended.transpose(1, 2).contiguous().view(*hidden.shape[:-1], -1))


class _Layer(nn.Module):
    def __init__(self, of: Architecture, compiling: bool):
        super().__init__()
        self.attn, self.mlp = _Attention(of, compiling), _Mlp(of, compiling)
        self.sa_norm, self.mlp_norm = _Norm(of.width, compiling), _Norm(of.width, compiling)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = self.attn(self.sa_norm(hidden), cos, sin) + hidden
        return hidden + self.mlp(self.mlp_norm(hidden))


def _build(of: Architecture, row: Row, run: Run, compiling: bool, depth: int) -> Decoder:
    with torch.device("meta"):
        net = Decoder(of, depth, lambda: _Layer(of, compiling), _Norm, run, angles=torch.float32).to(torch.bfloat16)
        if row.method == "full":
            return net
        net.requires_grad_(False)
        if row.method == "qlora":
            quantise(net, net.layers)
        for module in list(net.layers.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and name != "k_proj":
                    adapted = _Lora(child, row.rank or RANK)
                    adapted.lora_A.to(torch.bfloat16)
                    adapted.lora_B.to(torch.bfloat16)
                    setattr(module, name, adapted)
    return net


class _CompiledCrossEntropy(torch.autograd.Function):
    """Keeps the logits as they came and one number a row; the gradient is written in their dtype at once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, logits.new_empty(len(logits), dtype=torch.float32), targets)
        return logits.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.empty_like(ctx.saved_tensors[0]), None


def _cross_entropy(compiling: bool, logits: Tensor, targets: Tensor) -> Tensor:
    if compiling:
        return _CompiledCrossEntropy.apply(logits, targets)
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def _offloaded(x: Tensor) -> Any:
    return x if isinstance(x, nn.Parameter) or x.nbytes < 1024 else x.to("meta")


def _fetched(x: Tensor) -> Tensor:
    return torch.empty_like(x, device="cpu") if x.device.type == "meta" else x


def _loss(
    chunked: bool, compiling: bool, offloading: bool, net: Decoder, ids: Tensor, labels: Tensor
) -> tuple[Tensor, None]:
    hooks = torch.autograd.graph.saved_tensors_hooks(_offloaded, _fetched) if offloading else nullcontext()
    with hooks:
        hidden = net(ids)
    # What the output layer keeps is not offloaded.
    if not chunked:
        logits = net.lm_head(hidden).float()
        return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)), None
    logits = [net.lm_head(part) for part in hidden.chunk(CHUNKS, dim=1)]
    targets = [part.reshape(-1) for part in labels.chunk(CHUNKS, dim=1)]
    loss: Any = 0.0
    for part, target in zip(logits, targets, strict=True):
        loss = loss + _cross_entropy(compiling, part.reshape(-1, part.shape[-1]), target)
    return loss / labels.numel(), None
