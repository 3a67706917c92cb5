"""A chain of linear layers of one kind, whose adapters tests of fused products compare with peft's."""

from __future__ import annotations

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

KINDS = ("linear", "bias", "conv1d", "nf4")
TARGETS = ["inner", "middle", "outer"]


class Chain(nn.Module):
    """Two linear layers of one of KINDS, and another that is called twice between them. packed_bias: of nf4."""

    def __init__(self, kind: str, packed_bias: bool = True):
        super().__init__()
        self.is_loaded_in_4bit = kind == "nf4"

        def layer(rows: int, columns: int) -> nn.Module:
            if kind == "conv1d":
                return Conv1D(rows, columns)
            if kind == "nf4":
                keywords = {"compute_dtype": torch.float32, "quant_type": "nf4"}
                packed = Linear4bit(columns, rows, bias=packed_bias, **keywords)
                packed.support_avx512bf16_for_cpu = False
                return packed
            return nn.Linear(columns, rows, bias=kind == "bias")

        self.inner, self.middle, self.outer = layer(64, 32), layer(64, 64), layer(32, 64)
        self.to("cpu")  # where bitsandbytes quantises

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.middle(self.middle(self.inner(x)))))
