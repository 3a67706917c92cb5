"""Training steps on a GPU that is not there: tensors without storage that seem to lie on CUDA's device 0.

Standard input: lists of overrides of conf/config.yaml, as JSON. Standard output: for each of them, as one line of JSON,
what two steps take there, and what the planner says that they would. Runs with hooks.cpp built and preloaded.

    fake: bytes by window of a step and kind, on the fake GPU; planned: the same, by the planner on a fake CPU.
    attention: operations of attention in a step, on the fake GPU. on_cpu: operations that took a tensor from the CPU,
    but for copies that nothing waits for. awaited: operations of forward and backward passes that the host waits for.
    error: why there is none of these.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TextIO
from unittest import mock

import torch
import torch._subclasses.fake_tensor as fake_tensor
from job_helpers import tiny
from torch._subclasses.fake_impls import op_implementations_dict
from torch.utils._pytree import tree_leaves

from harness.job.measure.live_memory import LiveBytes
from harness.job.models import adapting, empty_weights, loading
from harness.job.predict import fake_probe, prediction, shapes
from harness.record import Cell

GPU = torch.device("cuda:0")
SEQUENCES = [(37, 10), (50, 20), (50, 20), (64, 30)]  # tokens, and how many of them are the prompt's
aten = torch.ops.aten
HARMLESS = {torch.ops.prim.device.default, aten.lift_fresh.default}  # to ask where a tensor is; to make one of a list
LIBRARY = torch.library.Library("aten", "IMPL")


def pretend() -> None:
    """Have torch's Python side say of a GPU what it would ask the driver for. After all imports, some of which look."""
    ctypes.CDLL(None).stand_in_for_cuda()  # of the preloaded hooks
    h100 = {"name": "H100", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 80 * 2**30}
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(**h100)
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda _: None
    torch.cuda._lazy_init = lambda: None
    fake_tensor.init_gpu_context = lambda _: None
    # Torch keeps the values of tensors of one number, and would compute with them on the GPU.
    fake_tensor.FakeTensorMode.may_turn_const = lambda *_: False
    torch.tensor = _placed(torch.tensor)
    # Torch composes it of others where a device has no kernel of its own for it, as CUDA has.
    LIBRARY.impl("silu_backward", lambda *_: None, "CUDA")


def _placed(tensor: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.tensor`, which copies what it is given to the device past every mode, and asks the driver to pin it."""

    def placed(data: Any, *, device: Any = None, pin_memory: bool = False, **keywords: Any) -> torch.Tensor:
        made = tensor(data, **keywords)
        if pin_memory:
            made.pinned = True
        if device is None:
            return made
        if torch.device(device).type == "cuda" and Watched.last is not None and Watched.last.in_micro_batch:
            Watched.last.awaited.add("torch.tensor")
        return torch.empty(made.shape, dtype=made.dtype, device=device)

    return placed


class Watched(LiveBytes):
    """Names operations that took a tensor from the CPU; optimizers may count their steps there.

    awaited: those of a micro-batch that the host waits for, because values cross between it and the GPU.
    """

    last: Watched | None = None

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.on_cpu: set[str] = set()
        self.awaited: set[str] = set()
        self.in_micro_batch = False
        Watched.last = self

    def mark(self, window: str) -> None:
        self.in_micro_batch = window != "optimizer"
        super().mark(window)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        from_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        queued = (kwargs or {}).get("non_blocking") and all(getattr(tensor, "pinned", False) for tensor in from_host)
        if function not in HARMLESS and any(tensor.ndim for tensor in from_host) and not queued:
            self.on_cpu.add(str(function))
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if self.in_micro_batch and function not in HARMLESS and not queued and _crosses(function, tensors, out):
            self.awaited.add(str(function))
        return out


def _crosses(function: Any, tensors: list[torch.Tensor], out: Any) -> bool:
    """Whether values pass between host and GPU. A kernel gets a number of the host along with its other arguments."""
    sides, result = (
        {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)} for tree in (tensors, out)
    )
    if function is aten._local_scalar_dense.default:
        return "cuda" in sides
    return {"cpu", "cuda"} == (sides if function is aten.copy_.default else sides ^ result)


def value(_mode: Any, _function: Any, tensor: torch.Tensor) -> float | int | bool:
    """What is found where a value is asked for that is not there."""
    if tensor.dtype is torch.bool:
        return tensor.device.type == "cpu"  # drawn against a dropout; on the GPU a check that something is wrong
    return 1.0 if tensor.is_floating_point() else 1


def with_values(cell: Cell, config: Any) -> tuple[torch.nn.Module, set[str]]:
    """The cell's model on the CPU, with weights: for methods that look at them before the first step."""
    dtype = getattr(torch, cell.settings.model.dtype)
    base = loading.AutoModelForCausalLM.from_config(config, dtype=dtype)
    own = {id(p) for p in base.parameters()}
    net = adapting.adapt(base, cell)
    return net, {name for name, p in net.named_parameters() if id(p) not in own}


def taken(cell: Cell, kernels: str, on: torch.device) -> dict[str, dict[str, float]]:
    """Peaks by window and kind of two steps (an untuned model: one pass) of `cell`."""
    planner = prediction.Predictor(None, "bf16", kernels, on)
    cell.settings = prediction._decided(cell.settings, "bf16")
    config, _ = planner._config(cell, None)
    if cell.method != "adaption_prompt":  # which wants two layers
        config = empty_weights.with_depth(config, 1)
    shape = shapes.Shape([SEQUENCES], steps=1, raw=201, padded=201, real=True)
    with torch.autograd.set_multithreading_enabled(False):
        return planner._probe(cell, config, shape, 1, planner._layout(cell, None)).windows


def answers(asked: list[list[str]]) -> Iterator[dict[str, Any]]:
    values = mock.patch.dict(op_implementations_dict, {aten._local_scalar_dense.default: value})
    for overrides in asked:
        cell = tiny("model.dtype=bfloat16", "train.precision=bf16", *overrides)
        try:
            try:
                planned, shell = taken(cell, "cuda", torch.device("cpu")), empty_weights.shell
            except empty_weights.NeedsValues:
                planned, shell = None, with_values
            with (
                mock.patch.object(fake_probe, "LiveBytes", Watched),
                mock.patch.object(empty_weights, "shell", shell),
                values,
            ):
                fake = taken(cell, "cuda", GPU)
            live = Watched.last
            yield {
                "fake": fake,
                "planned": planned,
                "attention": live.attention,
                "on_cpu": sorted(live.on_cpu),
                "awaited": sorted(live.awaited),
            }
        except Exception as error:
            print(traceback.format_exc(), file=sys.stderr)
            yield {"error": f"{type(error).__name__}: {error.__cause__ or error}"}


def own_output() -> TextIO:
    """Standard output for the script alone: what libraries and their compilers print goes to standard error."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    output, asked = own_output(), json.load(sys.stdin)
    pretend()
    gc.collect()
    gc.freeze()  # each collection would look through all libraries
    for answer in answers(asked):
        print(json.dumps(answer), file=output, flush=True)
