"""Linear layers in GPTQ's form: 4-bit weights in groups of 128 inputs, with a scale and a zero for each group."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

BITS, GROUP = 4, 128


class GptqLinear(nn.Linear):
    """Its `weight` is packed: ``inputs * outputs / 2`` bytes as int32. Scales are in 16 bits."""

    def __init__(self, inputs: int, outputs: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = inputs, outputs, None
        groups = -(-inputs // GROUP)
        packed = torch.empty(inputs * BITS // 32, outputs, dtype=torch.int32)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.qzeros = nn.Buffer(torch.empty(groups, outputs * BITS // 32, dtype=torch.int32))
        self.scales = nn.Buffer(torch.empty(groups, outputs, dtype=torch.bfloat16))
        self.g_idx = nn.Buffer(torch.empty(inputs, dtype=torch.int32))

    def whole(self) -> Tensor:
        """The matrix, dequantised: (inputs, outputs)."""
        return self.scales.new_empty(self.in_features, self.out_features)

    def forward(self, hidden: Tensor) -> Tensor:
        return _Product.apply(hidden.to(torch.bfloat16), self)


class _Product(torch.autograd.Function):
    """Keeps neither its input nor the dequantised matrix."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, layer: GptqLinear) -> Tensor:
        ctx.layer = layer
        return hidden @ layer.whole()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.whole().t(), None


def quantise(part: nn.Module) -> None:
    """Replace the linear layers in `part` by packed ones, on the same device."""
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, GptqLinear(child.in_features, child.out_features))
