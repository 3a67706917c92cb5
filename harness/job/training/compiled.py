"""Compiles a model's decoder layers by torch.compile, in place, for training only.

Validation, inference and scoring run the layers uncompiled. Attention over rows of several sequences is not compiled,
nor is gradient checkpointing: it calls what is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
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
    """Compile each decoder layer of `net`. Returns what undoes it. Raises UserError if there are no layers.

    Gradient checkpointing, if it is to be enabled, must be so already.
    """
    inner = structure.inner(net)
    layers = structure.decoder_layers(inner, inner.config)
    if layers is None:
        raise UserError("train.compile=true requires a model with a list of decoder layers.")
    attention.keep_from_compilation(True)
    torch.compiler.config.force_disable_caches = True  # otherwise compile time depends on earlier cells
    undone = ExitStack()
    for layer in layers:
        undone.callback((_enable_recomputed if getattr(layer, "gradient_checkpointing", False) else _enable)(layer))

    def undo() -> None:
        attention.keep_from_compilation(False)
        undone.close()
        torch.compiler.config.force_disable_caches = False
        torch.compiler.reset()

    return undo


def _enable(layer: nn.Module) -> Callable[[], None]:
    plain = layer._call_impl
    layer._compiled_call_impl = functools.partial(_called, torch.compile(plain, dynamic=True), plain)
    return lambda: setattr(layer, "_compiled_call_impl", None)


def _enable_recomputed(layer: nn.Module) -> Callable[[], None]:
    """Compile what the checkpoint of `layer` computes twice.

    The checkpoint itself is not compiled: torch.compile takes none that sets the row of sequences again, as
    harness.job.training.gradient_checkpointing does. Transformers checkpoints in training mode alone.
    """
    checkpoint, compiled = layer._gradient_checkpointing_func, None

    def compiling(forward: functools.partial, *args: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = torch.compile(forward.func, dynamic=True)  # of this layer; what is partial are its arguments
        return checkpoint(functools.partial(compiled, *forward.args, **forward.keywords), *args)

    layer._gradient_checkpointing_func = compiling
    return lambda: setattr(layer, "_gradient_checkpointing_func", checkpoint)


def seconds() -> float:
    """Seconds that this process has spent compiling."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]


def _called(compiled: Callable[..., Any], plain: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Call a layer: compiled if gradients are enabled."""
    return (compiled if torch.is_grad_enabled() else plain)(*args, **keywords)
