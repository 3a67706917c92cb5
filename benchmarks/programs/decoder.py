"""Decoders as published programs compute them: the same weights, but other tensors kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import peft
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from harness.job.models.quantisation import pack


@dataclass(frozen=True)
class Architecture:
    """Dimensions of a decoder with RMS norms and a gated MLP. attention_bias: whether q, k and v have one."""

    vocabulary: int
    width: int
    inner: int
    depth: int
    heads: int
    kv_heads: int
    head: int
    tied: bool = False
    attention_bias: bool = False

    @property
    def parameters(self) -> int:
        attention = self.width * self.head * (2 * self.heads + 2 * self.kv_heads)
        bias = self.head * (self.heads + 2 * self.kv_heads) if self.attention_bias else 0
        layer = attention + bias + 3 * self.width * self.inner + 2 * self.width
        return self.depth * layer + self.width + self.vocabulary * self.width * (1 if self.tied else 2)


class Norm(nn.Module):
    """Transformers' RMS norm: statistics in fp32, the result in the dtype of the input times the weight's."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = hidden.dtype
        hidden = hidden.float()
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.weight * hidden.to(dtype)


def rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Transformers' rotary embedding of [rows, heads, tokens, head]."""

    def half(x: Tensor) -> Tensor:
        middle = x.shape[-1] // 2
        return torch.cat((-x[..., middle:], x[..., :middle]), dim=-1)

    return (query * cos) + (half(query) * sin), (key * cos) + (half(key) * sin)


@dataclass(frozen=True)
class Code:
    """What may be replaced in transformers' decoder.

    rotate: the rotary embedding. repeats: whether keys and values are repeated for all heads before the kernel.
    qkv: computes query, key and value projections at once; null: one after another.
    """

    norm: type[nn.Module] = Norm
    rotate: Callable[..., tuple[Tensor, Tensor]] = rotated
    repeats: bool = False
    qkv: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    out: Callable[..., Tensor] | None = None


class Attention(nn.Module):
    def __init__(self, of: Architecture, code: Code):
        super().__init__()
        self.of, self.code = of, code
        bias = of.attention_bias
        self.q_proj = nn.Linear(of.width, of.heads * of.head, bias=bias)
        self.k_proj = nn.Linear(of.width, of.kv_heads * of.head, bias=bias)
        self.v_proj = nn.Linear(of.width, of.kv_heads * of.head, bias=bias)
        self.o_proj = nn.Linear(of.heads * of.head, of.width, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shape = (*hidden.shape[:-1], -1, self.of.head)
        if self.code.qkv is not None:
            query, key, value = self.code.qkv(self, hidden)
        else:
            query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        query, key, value = (x.view(shape).transpose(1, 2) for x in (query, key, value))
        query, key = self.code.rotate(query, key, cos, sin)
        if self.code.repeats and self.of.heads != self.of.kv_heads:
            groups = self.of.heads // self.of.kv_heads
            key, value = (x[:, :, None].expand(-1, -1, groups, -1, -1).reshape(query.shape) for x in (key, value))
        if query.dtype is torch.float32:  # FlashAttention has no fp32
            query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(*hidden.shape[:-1], -1)
        return self.o_proj(attended) if self.code.out is None else self.code.out(self.o_proj, attended)


class Mlp(nn.Module):
    def __init__(self, of: Architecture):
        super().__init__()
        self.gate_proj = nn.Linear(of.width, of.inner, bias=False)
        self.up_proj = nn.Linear(of.width, of.inner, bias=False)
        self.down_proj = nn.Linear(of.inner, of.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    def __init__(self, of: Architecture, code: Code):
        super().__init__()
        self.self_attn, self.mlp = Attention(of, code), Mlp(of)
        self.input_layernorm, self.post_attention_layernorm = code.norm(of.width), code.norm(of.width)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        residual = hidden
        hidden = self.input_layernorm(hidden)
        hidden = self.self_attn(hidden, cos, sin)
        hidden = residual + hidden
        residual = hidden
        hidden = self.post_attention_layernorm(hidden)
        hidden = self.mlp(hidden)
        return residual + hidden


Run = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # calls a layer on hidden states, cosines and sines


def kept(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The layer as it is: what its backward pass needs is kept."""
    return layer(hidden, cos, sin)


def reentrant(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradient checkpointing as transformers' Trainer asks for it by default."""
    if not hidden.requires_grad:
        hidden.requires_grad_()  # enable_input_require_grads
    return checkpoint(layer, hidden, cos, sin, use_reentrant=True, preserve_rng_state=False)


def recomputed(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradient checkpointing in torch's form without reentrance."""
    return checkpoint(layer, hidden, cos, sin, use_reentrant=False, preserve_rng_state=False)


class Decoder(nn.Module):
    """Hidden states after the last norm, of token ids (rows, tokens).

    layer: makes a decoder layer. run: how layers are called. angles: dtype of cosines and sines; null: the model's.
    """

    def __init__(
        self,
        of: Architecture,
        depth: int,
        layer: Callable[[], nn.Module],
        norm: type[nn.Module],
        run: Run,
        angles: torch.dtype | None = None,
    ):
        super().__init__()
        self.of, self.run, self.angles = of, run, angles
        self.embed_tokens = nn.Embedding(of.vocabulary, of.width)
        self.layers = nn.ModuleList(layer() for _ in range(depth))
        self.norm = norm(of.width)
        self.lm_head = nn.Linear(of.width, of.vocabulary, bias=False)
        if of.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed_tokens(ids)
        cos = torch.empty(1, 1, ids.shape[1], self.of.head, dtype=self.angles or hidden.dtype)
        sin = torch.empty_like(cos)
        for layer in self.layers:
            hidden = self.run(layer, hidden, cos, sin)
        return self.norm(hidden)


def quantise(net: nn.Module, part: nn.Module, double: bool = True) -> None:
    """Pack the matrices in `part` of `net`, on "meta", as NF4, computed in bf16. double: scales are in 8 bits too."""
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, _packed(child, double))
    pack(net, torch.bfloat16)


def _packed(linear: nn.Linear, double: bool) -> Linear4bit:
    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.bfloat16,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    layer.compute_type_is_set = True
    if linear.bias is not None:
        layer.bias = linear.bias
    return layer


def adapt(net: nn.Module, config: peft.PeftConfig) -> None:
    """Freeze `net` and give it the adapters of `config`, in fp32 as peft does."""
    net.requires_grad_(False)
    peft.inject_adapter_in_model(config, net)
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
        else:
            p.requires_grad_(False)
