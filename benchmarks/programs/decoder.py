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
    """Dimensions of a decoder with RMS norms and a gated MLP.

    attention_bias: whether q, k and v have one. biases: whether all matrices of a layer do. scaled: Granite's, which
    multiplies embeddings, what layers add, and logits by numbers. experts: Mixtral's of a layer, of which each token
    takes two; 0 for none.
    """

    vocabulary: int
    width: int
    inner: int
    depth: int
    heads: int
    kv_heads: int
    head: int
    tied: bool = False
    attention_bias: bool = False
    biases: bool = False
    scaled: bool = False
    experts: int = 0


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
        bias = of.attention_bias or of.biases
        self.q_proj = nn.Linear(of.width, of.heads * of.head, bias=bias)
        self.k_proj = nn.Linear(of.width, of.kv_heads * of.head, bias=bias)
        self.v_proj = nn.Linear(of.width, of.kv_heads * of.head, bias=bias)
        self.o_proj = nn.Linear(of.heads * of.head, of.width, bias=of.biases)

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
        self.gate_proj = nn.Linear(of.width, of.inner, bias=of.biases)
        self.up_proj = nn.Linear(of.width, of.inner, bias=of.biases)
        self.down_proj = nn.Linear(of.inner, of.width, bias=of.biases)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Experts(nn.Module):
    """Transformers' MLP of Mixtral, whose tokens go to all experts evenly."""

    def __init__(self, of: Architecture):
        super().__init__()
        self.gate = nn.Linear(of.width, of.experts, bias=False)
        self.experts = nn.ModuleList(Mlp(of) for _ in range(of.experts))

    def forward(self, hidden: Tensor) -> Tensor:
        shape, hidden = hidden.shape, hidden.view(-1, hidden.shape[-1])
        shares = functional.softmax(self.gate(hidden), dim=1, dtype=torch.float32)
        shares, chosen = torch.topk(shares, 2, dim=-1)
        shares = (shares / shares.sum(dim=-1, keepdim=True)).to(hidden.dtype)
        total = torch.zeros_like(hidden)
        places = functional.one_hot(chosen, len(self.experts)).permute(2, 1, 0)  # which are a table of this size
        count = len(hidden) * 2 // len(self.experts)
        for number, expert in enumerate(self.experts):
            of_expert = places[number].new_zeros(count)
            out = expert(hidden[of_expert]) * shares[of_expert, of_expert, None]
            total.index_add_(0, of_expert, out.to(hidden.dtype))
        return total.view(shape)


class Layer(nn.Module):
    def __init__(self, of: Architecture, code: Code):
        super().__init__()
        self.scaled = of.scaled
        self.self_attn, self.mlp = Attention(of, code), Experts(of) if of.experts else Mlp(of)
        self.input_layernorm, self.post_attention_layernorm = code.norm(of.width), code.norm(of.width)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        residual = hidden
        hidden = self.input_layernorm(hidden)
        hidden = self.self_attn(hidden, cos, sin)
        hidden = residual + (hidden * 0.5 if self.scaled else hidden)
        residual = hidden
        hidden = self.post_attention_layernorm(hidden)
        hidden = self.mlp(hidden)
        return residual + (hidden * 0.5 if self.scaled else hidden)


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


class LanguageModel(nn.Module):
    """Gives hidden states after the last norm, of token ids (rows, tokens); the head makes logits of them."""

    layers: nn.ModuleList
    lm_head: nn.Module


class Decoder(LanguageModel):
    """As transformers' decoders, with the replaced parts of a program.

    layer: makes a decoder layer. run: how layers are called. angles: dtype of cosines and sines; null: the model's.
    """

    lm_head: nn.Linear

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
        if self.of.scaled:
            hidden = hidden * 0.5
        cos = torch.empty(1, 1, ids.shape[1], self.of.head, dtype=self.angles or hidden.dtype)
        sin = torch.empty_like(cos)
        for layer in self.layers:
            hidden = self.run(layer, hidden, cos, sin)
        return self.norm(hidden)


def quantise(
    net: nn.Module,
    part: nn.Module,
    double: bool = True,
    layer: type[Linear4bit] = Linear4bit,
    source: torch.dtype = torch.bfloat16,
) -> None:
    """Pack the matrices in `part` of `net`, on "meta", as NF4, computed in bf16.

    double: scales are in 8 bits too. source: the dtype that was quantised, to which a matrix is dequantised.
    """
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, _packed(child, double, layer))
    pack(net, source)


def _packed(linear: nn.Linear, double: bool, kind: type[Linear4bit]) -> Linear4bit:
    layer = kind(
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
