"""The decoder of Lightning-AI/litgpt (litgpt/model.py, litgpt/lora.py) as its rows were measured, in 2024.

One matrix for queries, keys and values, keys and values repeated for all heads, rotary embedding in fp32. Its
configurations (litgpt/config.py) choose norm, MLP, biases, a parallel residual and caps of logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bitsandbytes.functional as packed
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from torch.nn import functional

from programs.decoder import LanguageModel


@dataclass(frozen=True)
class Config:
    """Dimensions of a model, named as the fields of litgpt's Config are meant.

    vocabulary: padded. mlp: LLaMAMLP, GemmaMLP or GptNeoxMLP. parallel: attention and MLP read the same hidden states.
    shared_norm: by the same norm, too. rotated: channels of a head that are rotated. post_norms: norms after attention
    and MLP. capped: attention's scores pass a tanh, which no fused kernel computes.
    """

    vocabulary: int
    width: int
    inner: int
    depth: int
    heads: int
    groups: int
    head: int
    mlp: str = "LLaMAMLP"
    bias: bool = False
    head_bias: bool = False
    layer_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False
    rotated: int | None = None
    post_norms: bool = False
    capped: bool = False


@dataclass(frozen=True)
class Adapters:
    """LoRA as a file of config_hub/finetune sets it. everywhere: on all matrices; else on queries and values."""

    rank: int
    dropout: float
    everywhere: bool = False


class RmsNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = hidden.dtype
        hidden = hidden.float()
        normed = hidden * torch.rsqrt(torch.mean(hidden * hidden, dim=-1, keepdim=True) + 1e-5)
        return (normed * self.weight.float()).to(dtype)


def norm(of: Config, width: int) -> nn.Module:
    return nn.LayerNorm(width) if of.layer_norm else RmsNorm(width)


class LoraLinear(nn.Module):
    """A frozen matrix and, if there are `adapters`, LoRA of it."""

    def __init__(self, inputs: int, outputs: int, bias: bool, adapters: Adapters | None):
        super().__init__()
        self.linear, self.adapters = nn.Linear(inputs, outputs, bias=bias), adapters
        if adapters:
            self.lora_A = nn.Parameter(torch.empty(adapters.rank, inputs))
            self.lora_B = nn.Parameter(torch.empty(outputs, adapters.rank))

    def forward(self, hidden: Tensor) -> Tensor:
        plain = self.linear(hidden)
        if not self.adapters:
            return plain
        dropped = functional.dropout(hidden, self.adapters.dropout)
        return plain + (dropped @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * 0.5


class Qkv(nn.Module):
    """One matrix for queries, keys and values, and LoRA of queries and values, or of all three."""

    def __init__(self, of: Config, adapters: Adapters | None):
        super().__init__()
        self.sizes = (of.heads * of.head, of.groups * of.head, of.groups * of.head)
        self.linear, self.adapters = nn.Linear(of.width, sum(self.sizes), bias=of.bias), adapters
        self.grouped = of.heads == of.groups
        if adapters:
            self.adapted = self.sizes if adapters.everywhere else (self.sizes[0], self.sizes[2])
            self.lora_A = nn.Parameter(torch.empty(len(self.adapted) * adapters.rank, of.width))
            self.lora_B = nn.Parameter(torch.empty(sum(self.adapted), adapters.rank))
            self.places = nn.Buffer(torch.empty(sum(self.adapted), dtype=torch.long))

    def forward(self, hidden: Tensor) -> Tensor:
        plain = self.linear(hidden)
        if not self.adapters:
            return plain
        inner = functional.linear(functional.dropout(hidden, self.adapters.dropout), self.lora_A)
        outer = self._by_b(inner.transpose(-2, -1), self.lora_B.unsqueeze(-1)).transpose(-2, -1)
        return plain + self._padded(outer) * 0.5

    def _by_b(self, inner: Tensor, weight: Tensor) -> Tensor:
        count = len(self.adapted)
        if self.grouped:
            return functional.conv1d(inner, weight, groups=count)
        pairs = zip(inner.chunk(count, dim=1), weight.split(self.adapted), strict=True)
        return torch.cat([functional.conv1d(x, w) for x, w in pairs], dim=1)

    def _padded(self, outer: Tensor) -> Tensor:
        if len(self.adapted) == 3:
            return outer
        return outer.new_zeros(*outer.shape[:-1], sum(self.sizes)).index_copy_(-1, self.places, outer)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, channels: int) -> Tensor:
    first = x[..., :channels]
    middle = channels // 2
    turned = torch.cat((-first[..., middle:], first[..., :middle]), dim=-1)
    roped = ((first * cos) + (turned * sin)).to(x.dtype)
    return torch.cat((roped, x[..., channels:]), dim=-1)


class Attention(nn.Module):
    def __init__(self, of: Config, adapters: Adapters | None):
        super().__init__()
        self.of, self.attn = of, Qkv(of, adapters)
        everywhere = adapters if adapters and adapters.everywhere else None
        self.proj = LoraLinear(of.heads * of.head, of.width, of.bias, everywhere)

    def forward(self, normed: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, tokens, _ = normed.shape
        of = self.of
        split = self.attn(normed).split(self.attn.sizes, dim=-1)
        query, key, value = (x.view(rows, tokens, -1, of.head).transpose(1, 2) for x in split)
        if of.groups != of.heads:
            repeats = of.heads // of.groups
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        channels = of.rotated or of.head
        query, key = _turned(query, cos, sin, channels), _turned(key, cos, sin, channels)
        if of.capped:
            attended = _capped(query, key, value)
        else:
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.proj(attended.transpose(1, 2).reshape(rows, tokens, -1))


def _capped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of scores that a tanh caps."""
    scores = query @ key.mT * 0.0625
    scores = torch.tanh(scores / 50.0) * 50.0
    scores = scores + scores.new_zeros(scores.shape[-2:])
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value


class Mlp(nn.Module):
    def __init__(self, of: Config, adapters: Adapters | None):
        super().__init__()
        everywhere = adapters if adapters and adapters.everywhere else None
        self.activation = functional.silu if of.mlp == "LLaMAMLP" else functional.gelu
        self.gate = LoraLinear(of.width, of.inner, of.bias, everywhere)
        self.up = None if of.mlp == "GptNeoxMLP" else LoraLinear(of.width, of.inner, of.bias, everywhere)
        self.proj = LoraLinear(of.inner, of.width, of.bias, everywhere)

    def forward(self, hidden: Tensor) -> Tensor:
        gate = self.gate(hidden)
        if self.up is None:
            return self.proj(self.activation(gate))
        up = self.up(hidden)
        return self.proj(self.activation(gate) * up)


class Block(nn.Module):
    def __init__(self, of: Config, adapters: Adapters | None):
        super().__init__()
        self.of = of
        self.norm_1 = norm(of, of.width)
        self.norm_2 = None if of.shared_norm else norm(of, of.width)
        self.attn, self.mlp = Attention(of, adapters), Mlp(of, adapters)
        self.after_attention, self.after_mlp = (
            norm(of, of.width) if of.post_norms else nn.Identity() for _ in range(2)
        )

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.norm_1(hidden)
        attended = self.after_attention(self.attn(normed, cos, sin))
        if self.norm_2 is None:  # with a parallel residual alone
            return self.mlp(normed) + attended + hidden
        if self.of.parallel:
            normed = self.norm_2(hidden)
            return self.mlp(normed) + attended + hidden
        hidden = attended + hidden
        return self.after_mlp(self.mlp(self.norm_2(hidden))) + hidden


class Gpt(LanguageModel):
    """Hidden states after the last norm, of token ids (rows, tokens)."""

    def __init__(self, of: Config, adapters: Adapters | None, depth: int):
        super().__init__()
        self.of = of
        self.embed_tokens = nn.Embedding(of.vocabulary, of.width)
        self.layers = nn.ModuleList(Block(of, adapters) for _ in range(depth))
        self.norm = norm(of, of.width)
        everywhere = adapters if adapters and adapters.everywhere else None
        self.lm_head = LoraLinear(of.width, of.vocabulary, of.head_bias, everywhere)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed_tokens(ids)
        if self.of.mlp == "GemmaMLP":
            hidden = hidden * 0.5  # scale_embeddings
        cos = torch.empty(ids.shape[1], self.of.rotated or self.of.head, dtype=torch.float32)
        sin = torch.empty_like(cos)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return self.norm(hidden)


class Linear042(Linear4bit):
    """bitsandbytes 0.42's layer over a matrix that Fabric quantised from fp16.

    Both passes dequantise to fp16 and copy that to bf16. The input is an attribute of the product's context, not one of
    its saved tensors, so that the backward pass does not free it: it stands until the graph goes.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        return _Product.apply(hidden, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Params4bit, bias: Tensor | None) -> Tensor:
        ctx.matrix, ctx.hidden = weight, hidden if ctx.needs_input_grad[0] else None
        return functional.linear(hidden, _whole(weight, hidden.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return torch.matmul(gradient, _whole(ctx.matrix, gradient.dtype)), None, None


def _whole(weight: Params4bit, dtype: torch.dtype) -> Tensor:
    return packed.dequantize_4bit(weight, weight.quant_state).to(dtype)
