"""What `litgpt finetune` of Lightning-AI/litgpt does with the configurations in config_hub/finetune.

Its own decoder: one matrix for queries, keys and values, keys and values repeated for all heads, rotary embedding in
fp32, no checkpointing. Weights, adapters and moments in bf16 (bf16-true), head and embedding apart. AdamW of torch. Of
LoRA and QLoRA the head's logits in chunks of 128 tokens; Fabric casts them to fp32, and they stand until the next step.
QLoRA packs all matrices, the head too, as NF4 with fp32 scales; bitsandbytes 0.42 keeps each product's input; moments
are paged, which torch's allocator does not hand out; and the embedding becomes bitsandbytes' StableEmbedding, which no
optimizer steps, so that its gradient stays, while the optimizer holds the embedding that it replaced. It reports
torch.cuda.max_memory_allocated in 10^9 bytes.
"""

from __future__ import annotations

from functools import partial

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from harness import units
from harness.errors import UserError
from harness.job.methods.adamw import PagedAdamW
from programs.architectures import architecture
from programs.decoder import Architecture, Decoder, Mlp, kept, quantise
from programs.rows import Row
from programs.step import Predicted, Program

RANK, DROPOUT = 32, 0.05  # of all configurations whose models are known here, on queries and values
MICRO_BATCH = {"full": 4}
# By method and model: config_hub/finetune/MODEL/METHOD.yaml
MICRO_BATCHES = {
    "lora": {"llama-2-7b": 2, "mistral-7b": 2, "llama-3": 1},
    "qlora": {"llama-2-7b": 2, "mistral-7b": 2, "llama-3": 2},
}


def program(row: Row) -> Program:
    """Raises UserError if the row lacks a setting or asks for what is not modelled."""
    if row.method not in ("full", "lora", "qlora"):
        raise UserError(f"method must be full, lora or qlora, got {row.method}.")
    if not row.tokens_per_row:
        raise UserError("A prediction requires tokens_per_row.")
    if row.targets not in (None, "q,v"):
        raise UserError(f"targets must be q,v, got {row.targets}.")
    of, packed = architecture(row.model), row.method == "qlora"
    return Program(
        build=partial(_build, of, row),
        loss=_loss if row.method == "full" else _chunked_loss,
        optimizer=partial(PagedAdamW, lr=1e-4) if packed else partial(torch.optim.AdamW, lr=1e-4, foreach=True),
        depth=of.depth,
        rows=micro_batch(row),
        tokens=row.tokens_per_row,
        autocast=False,
        clip=False,
        checkpointed=False,
        workspaces=row.workspaces,
        micro_batches=2,
        columns=2,
    )


def micro_batch(row: Row) -> int:
    """Of the row, else of the repository's configuration. Raises UserError if neither has it."""
    if row.micro_batch:
        return row.micro_batch
    if row.method == "full":
        return MICRO_BATCH["full"]
    name = row.model.lower().partition("/")[2].removeprefix("meta-")
    for model, size in MICRO_BATCHES.get(row.method, {}).items():
        if name.startswith(model):
            return size
    raise UserError("A prediction requires micro_batch.")


def unknown(row: Row, predicted: Predicted) -> str | None:
    """See programs.compare.Reading."""
    steady = sum(predicted.resident.values()) + 2 * predicted.trained  # gradients stand while moments do
    if row.method == "full" and row.peak_bytes < steady:
        return (
            f"weights, gradients and moments of the configuration's AdamW are {units.size(steady)}, more than was "
            "published, so the run had another optimizer."
        )
    return None


class _Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = hidden.dtype
        hidden = hidden.float()
        normed = hidden * torch.rsqrt(torch.mean(hidden * hidden, dim=-1, keepdim=True) + 1e-5)
        return (normed * self.weight.float()).to(dtype)


class _Qkv(nn.Module):
    """One matrix for queries, keys and values, and LoRA of queries and values."""

    def __init__(self, of: Architecture, rank: int | None):
        super().__init__()
        sizes = (of.heads * of.head, of.kv_heads * of.head, of.kv_heads * of.head)
        self.linear, self.sizes = nn.Linear(of.width, sum(sizes), bias=of.attention_bias), sizes
        self.rank = rank
        if rank:
            self.lora_A = nn.Parameter(torch.empty(2 * rank, of.width))
            self.lora_B = nn.Parameter(torch.empty(sizes[0] + sizes[2], rank))
            self.places = nn.Buffer(torch.empty(sizes[0] + sizes[2], dtype=torch.long))

    def forward(self, hidden: Tensor) -> Tensor:
        plain = self.linear(hidden)
        if not self.rank:
            return plain
        inner = functional.linear(functional.dropout(hidden, DROPOUT), self.lora_A)
        halves = inner.transpose(-2, -1).chunk(2, dim=1)
        weights = self.lora_B.unsqueeze(-1).split((self.sizes[0], self.sizes[2]))
        outer = torch.cat([functional.conv1d(x, w) for x, w in zip(halves, weights, strict=True)], dim=1)
        outer = outer.transpose(-2, -1)
        padded = outer.new_zeros(*outer.shape[:-1], sum(self.sizes))
        padded.index_copy_(-1, self.places, outer)
        return plain + padded * 0.5


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    middle = x.shape[-1] // 2
    turned = torch.cat((-x[..., middle:], x[..., :middle]), dim=-1)
    roped = ((x * cos) + (turned * sin)).to(x.dtype)
    return torch.cat((roped, x[..., x.shape[-1] :]), dim=-1)


class _Layer(nn.Module):
    def __init__(self, of: Architecture, rank: int | None):
        super().__init__()
        self.of = of
        self.norm_1, self.norm_2 = _Norm(of.width), _Norm(of.width)
        self.qkv, self.proj = _Qkv(of, rank), nn.Linear(of.heads * of.head, of.width, bias=False)
        self.mlp = Mlp(of)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.norm_1(hidden)
        hidden = self._attended(normed, cos, sin) + hidden
        normed = self.norm_2(hidden)
        return self.mlp(normed) + hidden

    def _attended(self, normed: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, tokens, _ = normed.shape
        of, qkv = self.of, self.qkv(normed)
        query, key, value = qkv.split(self.qkv.sizes, dim=-1)
        query, key, value = (x.view(rows, tokens, -1, of.head).transpose(1, 2) for x in (query, key, value))
        if of.kv_heads != of.heads:
            groups = of.heads // of.kv_heads
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.proj(attended.transpose(1, 2).reshape(rows, tokens, -1))


class _Held(torch.autograd.Function):
    """Returns `out`, and keeps `given` for the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, out: Tensor, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _StableEmbedding(nn.Module):
    def __init__(self, of: Architecture):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(of.vocabulary, of.width))
        self.replaced = nn.Parameter(torch.empty(of.vocabulary, of.width), requires_grad=False)
        self.norm = nn.LayerNorm(of.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(functional.embedding(ids, self.weight))


def _build(of: Architecture, row: Row, depth: int) -> nn.Module:
    of = Architecture(**{**vars(of), "tied": False})
    rank = None if row.method == "full" else row.rank or RANK
    with torch.device("meta"):
        net = Decoder(of, depth, lambda: _Layer(of, rank), _Norm, kept, angles=torch.float32)
        net = net.to(torch.bfloat16)
        if rank:
            for name, p in net.named_parameters():
                p.requires_grad_("lora_" in name)
        if row.method == "qlora":
            quantise(net, net, double=False)
            for module in net.modules():
                if isinstance(module, Linear4bit):  # bitsandbytes 0.42: MatMul4Bit saves its input
                    module.register_forward_hook(lambda _, given, out: _Held.apply(out, given[0].detach()))
            net.embed_tokens = _StableEmbedding(of).to(torch.bfloat16)
    return net


def _loss(net: nn.Module, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = net.lm_head(net(ids)).float()  # Fabric's convert_output
    shifted, targets = logits[..., :-1, :].reshape(-1, logits.shape[-1]), labels[..., 1:].reshape(-1)
    parts = zip(shifted.split(128), targets.split(128), strict=True)
    losses = [functional.cross_entropy(part, target, reduction="none") for part, target in parts]
    return torch.cat(losses).sum() / targets.numel(), logits


def _chunked_loss(net: nn.Module, ids: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    logits = [net.lm_head(part) for part in net(ids).split(128, dim=1)]
    logits = [part.float() for part in logits]  # Fabric's convert_output
    logits[-1] = logits[-1][..., :-1, :]
    parts = [part.reshape(-1, part.shape[-1]) for part in logits]
    targets = [part.reshape(-1) for part in labels[..., 1:].split(128, dim=1)]
    pairs = zip(parts, targets, strict=True)
    losses = [functional.cross_entropy(part, target, reduction="none") for part, target in pairs]
    return torch.cat(losses).sum() / labels.numel(), logits
