"""Linear layers in GPTQ's form: 4-bit weights in groups of inputs, with a scale and a zero for each group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from programs.decoder import Experts

BITS, GROUP = 4, 128
WHOLE = ("llama-2-70b-gptq", "mixtral-8x7b-instruct-v0.1-gptq")  # one group, as TheBloke's cards say ("GS: None")


class GptqLinear(nn.Linear):
    """Its `weight` is packed: ``inputs * outputs / 2`` bytes as int32. Scales are in 16 bits. group: of inputs."""

    def __init__(self, inputs: int, outputs: int, group: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        self.register_parameter("bias", None)
        groups = -(-inputs // group)
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
    def forward(ctx: Any, hidden: Tensor, layer: GptqLinear) -> Tensor:
        ctx.layer = layer
        return hidden @ layer.whole()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.whole().t(), None


def quantise(part: nn.Module, model: str) -> None:
    """Replace the linear layers in `part` of `model` by packed ones, on the same device; not a router of experts."""
    whole = model.lower().rpartition("/")[2] in WHOLE
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not isinstance(module, Experts):
                group = child.in_features if whole else GROUP
                setattr(module, name, GptqLinear(child.in_features, child.out_features, group))
