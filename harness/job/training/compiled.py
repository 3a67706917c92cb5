"""Compiles a model's decoder layers by torch.compile, in place, for training only.

Validation, inference and scoring run the layers uncompiled. Attention over rows of several sequences is not compiled,
nor is gradient checkpointing: it calls what is. What was compiled is kept on disk, so that cells with the same layers
compile them once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from harness.errors import UserError
from harness.job.measure import device
from harness.job.models import embedded, structure
from harness.job.training import attention
from harness.settings import Settings

KEPT = "compiled"  # the folder of compiled layers in the cache of built models
GRAPHS = 64  # of one function. torch allows 8, and the linear layers in DoRA's, which come alone, have more shapes.


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

    Gradient checkpointing, if it is to be enabled, must be so already. Layers of equal modules and shapes share graphs.
    Training raises RuntimeError if a function needs more than GRAPHS; by torch's default it would run uncompiled.
    """
    inner = structure.inner(net)
    layers = structure.decoder_layers(inner, inner.config)
    if layers is None:
        raise UserError("train.compile=true requires a model with a list of decoder layers.")
    attention.keep_from_compilation(True)
    undone = ExitStack()
    limits = {"recompile_limit": GRAPHS, "fail_on_recompile_limit_hit": True}
    undone.enter_context(torch.compiler.config.patch(**limits))  # type: ignore[attr-defined]  # a module
    undone.enter_context(_kept(embedded.cache() / KEPT))
    for layer in layers:
        undone.callback((_enable_recomputed if getattr(layer, "gradient_checkpointing", False) else _enable)(layer))

    def undo() -> None:
        attention.keep_from_compilation(False)
        undone.close()
        torch.compiler.reset()

    return undo


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """A context in which torch keeps in `folder` what it compiles, and takes it from there.

    Torch names each file by all that it depends on: the graph, its settings, torch's version and the CPU or GPU.
    """
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
        if before is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def _enable(layer: nn.Module) -> Callable[[], None]:
    plain = layer._call_impl
    layer._compiled_call_impl = functools.partial(_called, _compile(plain), plain)
    return lambda: setattr(layer, "_compiled_call_impl", None)


def _enable_recomputed(layer: Any) -> Callable[[], None]:
    """Compile what the checkpoint of `layer`, one of transformers' modules, computes twice.

    The checkpoint itself is not compiled: torch.compile takes none that sets the row of sequences again, as
    harness.job.training.gradient_checkpointing does. Transformers checkpoints in training mode alone.
    """
    checkpoint, compiled = layer._gradient_checkpointing_func, None

    def compiling(forward: functools.partial[Any], *args: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = _compile(forward.func)  # of this layer; what is partial are its arguments
        return checkpoint(functools.partial(compiled, *forward.args, **forward.keywords), *args)

    layer._gradient_checkpointing_func = compiling
    return lambda: setattr(layer, "_gradient_checkpointing_func", checkpoint)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(function, dynamic=True)

    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return compiled(*args, **keywords)
        except FailOnRecompileLimitHit:
            raise RuntimeError(
                f"train.compile=true requires layers that share their graphs; these need more than {GRAPHS}."
            ) from None

    return call


def seconds() -> float:
    """Seconds that this process has spent compiling."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]


def _called(compiled: Callable[..., Any], plain: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Call a layer: compiled if gradients are enabled."""
    return (compiled if torch.is_grad_enabled() else plain)(*args, **keywords)
