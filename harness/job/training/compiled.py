"""Compiles a model's decoder layers by torch.compile, in place, for training only.

Validation, inference and scoring run the layers uncompiled. Attention over rows of several sequences is not compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from harness.errors import UserError
from harness.job.measure import device
from harness.job.models import structure
from harness.job.training import attention
from harness.settings import Settings


def check(settings: Settings) -> None:
    """Raise UserError if layers are to be compiled on a CPU, and there is no C++ compiler."""
    if settings.train.compile and device.here().type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError:
            raise UserError("train.compile=true requires a C++ compiler on a CPU; install g++ or clang.") from None


def enable(net: nn.Module) -> Callable[[], None]:
    """Compile each decoder layer of `net`. Returns what undoes it. Raises UserError if there are no layers."""
    inner = structure.inner(net)
    layers = structure.decoder_layers(inner, inner.config)
    if layers is None:
        raise UserError("train.compile=true requires a model with a list of decoder layers.")
    attention.keep_from_compilation(True)
    torch.compiler.config.force_disable_caches = True  # otherwise compile time depends on earlier cells
    for layer in layers:
        layer.compile(dynamic=True)
        layer._compiled_call_impl = functools.partial(_called, layer._compiled_call_impl, layer._call_impl)

    def undo() -> None:
        attention.keep_from_compilation(False)
        for layer in layers:
            layer._compiled_call_impl = None
        torch.compiler.config.force_disable_caches = False
        torch.compiler.reset()

    return undo


def seconds() -> float:
    """Seconds that this process has spent compiling."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]


def _called(compiled: Callable[..., Any], plain: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Call a layer: compiled if gradients are enabled."""
    return (compiled if torch.is_grad_enabled() else plain)(*args, **keywords)
