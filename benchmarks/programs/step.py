"""One training step of a published program in tensors without storage: what it leaves resident, and its peak.

The instruments are those of `plan` (harness/job/predict): live bytes by dispatched operation, CUDA's choice of kernels
and their workspaces, and the line through two shallow models for the depth of the real one. What differs from program
to program is the model's code, the loss and the order in which a step frees tensors; `Program` names these.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.workspaces import WORKSPACES
from harness.job.methods import optimizers
from harness.job.predict.caching_allocator import Trace
from harness.job.predict.cuda_kernels import CudaKernels
from harness.job.predict.extrapolation import Line, mark_layers, peaks_by_window
from harness.job.predict.fake_tensors import NUMBER, materialise, stepping_twice
from harness.job.training import probe
from programs.decoder import LanguageModel

CPU = torch.device("cpu")


Model = TypeVar("Model", bound=LanguageModel)


@dataclass(frozen=True)
class Program(Generic[Model]):
    """What a program does in a step.

    build: the model on "meta" with a number of decoder layers, quantised and adapted.
    loss: the loss of the model on token ids (rows, tokens) and labels of the same shape, and what the program still
        holds of the forward pass when the backward pass begins.
    optimizer: makes the optimizer of the trained weights; with `in_backward` one for each weight, which steps as soon
        as the weight's gradient is whole.
    autocast: whether forward passes run under autocast to bf16.
    clip: whether the norm of the gradient is clipped.
    checkpointed: whether layers are recomputed in the backward pass.
    workspaces: bytes of cuBLAS' workspaces, which torch's allocator hands out too.
    micro_batches: of a step; 2 stand for all larger numbers.
    columns: tensors of token numbers in a batch: ids, labels and, where there is one, the mask of attention.
    """

    build: Callable[[int], Model]
    loss: Callable[[Model, Tensor, Tensor], tuple[Tensor, Any]]
    optimizer: Callable[[list[nn.Parameter]], Optimizer]
    depth: int
    rows: int
    tokens: int
    autocast: bool
    clip: bool
    checkpointed: bool
    in_backward: bool = False
    workspaces: int = 0
    micro_batches: int = 1
    columns: int = 3


@dataclass(frozen=True)
class Predicted:
    """Bytes of a step. peak: by kind, in the window of the highest total. window: where in the step that is."""

    resident: dict[str, int]
    peak: dict[str, int]
    window: str
    workspaces: int
    parameters: int
    trained: int

    @property
    def resident_bytes(self) -> int:
        return sum(self.resident.values()) + self.workspaces

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values()) + self.workspaces


def predict(program: Program[Model]) -> Predicted:
    """The step at the program's depth, from two shallow models.

    A first layer is not like the others: where the embedding is frozen, some of its tensors need no gradient.
    """
    few = (2, 3)
    one, two = (_probe(program, depth) for depth in few)
    line = one.through(two, *few, program.depth)
    window = max(line.windows, key=lambda name: sum(line.windows[name].values()))
    return Predicted(
        {k.partition(":")[2]: round(v) for k, v in line.others.items() if k.startswith("resident:")},
        {kind: round(value) for kind, value in line.windows[window].items()},
        window,
        program.workspaces,
        round(line.others["parameters"]),
        round(line.others["trained"]),
    )


def reserved(program: Program[Model], capacity: int | None) -> int:
    """Bytes that the allocator reserves at the program's real depth, in segments of fixed sizes, as is torch's default.

    capacity: of the card, as of CachingAllocator.
    """
    trace = Trace()
    _probe(program, program.depth, trace)
    return trace.reserved(None, capacity) + program.workspaces


def _probe(program: Program[Model], depth: int, trace: Trace | None = None) -> Line:
    net = program.build(depth)
    live = LiveBytes(CPU, WORKSPACES, trace=trace)
    with FakeTensorMode(), CudaKernels(program.autocast):
        materialise(net, CPU)
        ids = torch.zeros(program.rows, program.tokens, dtype=torch.long)
        labels, *others = (torch.zeros_like(ids) for _ in range(program.columns - 1))
        mark_layers(net.layers, live)
        trained = [p for p in net.parameters() if p.requires_grad]
        adapters = {id(p) for name, p in net.named_parameters() if "lora_" in name}
        for p in trained:
            p.register_post_accumulate_grad_hook(lambda p: live.see(p.grad, "gradients"))
        if program.in_backward:
            state = _steps_in_backward(trained, program.optimizer)
        else:
            optimizer = stepping_twice(lambda _: program.optimizer(trained), live)(net)
        net.train()
        numbers = live.replacing(NUMBER, lambda tensor: 1.0) if program.in_backward else nullcontext()
        with live, numbers:
            probe.see_weights(net, adapters, live)
            live.see([ids, labels, *others], "activations")
            for _ in range(2 if program.in_backward else 1):
                for _ in range(program.micro_batches):
                    live.mark("begin")
                    with torch.autocast("cpu", torch.bfloat16) if program.autocast else nullcontext():
                        loss, held = program.loss(net, ids, labels)
                    loss.backward()
                live.mark("optimizer")
                if program.in_backward:
                    live.see([list(s.values()) for o in state for s in o.state.values()], "optimizer")
                    continue
                if program.clip:
                    torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
                optimizer.step()
                optimizer.zero_grad()
                live.see(optimizers.state(optimizer), "optimizer")
            del loss, held
            resident = live.now_by_kind
    kinds = {f"resident:{kind}": value for kind, value in vars(resident).items()}
    sizes = [p.numel() * (2 * p.itemsize if type(p).__name__ == "Params4bit" else 1) for p in net.parameters()]
    counts = {"parameters": sum(sizes), "trained": sum(p.numel() for p in trained)}
    return Line(peaks_by_window(live, depth, resident.optimizer), kinds | counts)


def _steps_in_backward(
    trained: list[nn.Parameter], build: Callable[[list[nn.Parameter]], Optimizer]
) -> list[Optimizer]:
    """Optimizers of one weight each, which step as soon as its gradient is whole."""
    made = []
    for p in trained:
        optimizer = build([p])
        made.append(optimizer)

        def step(_p: Tensor, optimizer: Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        p.register_post_accumulate_grad_hook(step)
    return made
