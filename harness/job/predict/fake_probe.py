"""Probes a cell's model in tensors without storage, exactly as a run probes its real model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from transformers import PretrainedConfig

from harness.errors import UserError
from harness.job.data.batching import Batch, Layout
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.workspaces import WORKSPACES
from harness.job.methods import optimizers
from harness.job.models import empty_weights, structure
from harness.job.models.quantisation import packed_experts
from harness.job.predict import phases
from harness.job.predict.caching_allocator import ROUNDING, Trace
from harness.job.predict.cuda_kernels import CudaKernels
from harness.job.predict.extrapolation import Line, count_buckets, mark_layers, peaks_by_window
from harness.job.predict.fake_tensors import (
    FakeTensors,
    in_groups,
    materialise,
    materialise_shares,
    stepping_twice,
    valueless,
)
from harness.job.predict.roofline import Roofline
from harness.job.predict.shapes import Shape
from harness.job.training import (
    activation_offload,
    attention,
    distributed,
    fused_dora,
    fused_lora,
    gradient_checkpointing,
    layer_kernels,
    loss,
    objectives,
    probe,
    shards,
    uncast_inputs,
)
from harness.protocol import CardRates
from harness.record import Calibration, Cell, Probe

CPU = torch.device("cpu")
WORK = ("products", "attention", "moved", "timed")  # kinds of work, as Roofline counts them
ELSEWHERE = torch.device("meta")  # stands for the host's memory, which is not counted


@dataclasses.dataclass(frozen=True)
class PredictedDevice:
    """The device that a cell is predicted for.

    kernels: whose kernels compute there, ``cpu`` or ``cuda``. on: device of the tensors without storage. For a GPU
    torch must be built with CUDA. rates: of the card, for the work of the training (null: it is not predicted).
    calibration: of the device, for the time of its kernels (null: it is not predicted).
    """

    kernels: str
    on: torch.device
    rates: CardRates | None
    calibration: Calibration | None = None

    def roofline(self, compiled: bool) -> Roofline | None:
        if self.rates is None and self.calibration is None:
            return None
        return Roofline(self.rates, self.calibration, compiled)


class FakeProbe:
    """The probe of `cell` with a model of `config`, as on `device`, in batches of `layout`.

    Raises UserError if the cell does not work, and NeedsValues if the method depends on values of weights or gradients.

    fuses_loss: whether the loss is computed in the head of such a model, as a probe of another depth or batch had it;
    false if none had.
    """

    def __init__(
        self, cell: Cell, config: PretrainedConfig, layout: Layout, device: PredictedDevice, fuses_loss: bool = False
    ):
        self._cell, self._config, self._layout, self._device = cell, config, layout, device
        self.fuses_loss = fuses_loss
        self._settings, self._train = cell.settings, cell.settings.train
        self._bf16 = self._train.precision == "bf16"
        self._objective = objectives.objective_of(self._train, valued=False)
        self._roofline = device.roofline(self._train.compile)
        # A sharded model gathers its weights on a second stream, which has blocks of its own.
        self._trace = Trace() if device.kernels == "cuda" and not self._train.sharded else None
        workspaces = WORKSPACES if device.kernels == "cuda" else None
        self._live = LiveBytes(device.on, workspaces, self._roofline, self._trace)

    def line(self, shape: Shape, times: int) -> Line:
        """The figures on micro-batches `times` as large as those of `shape`."""
        net, added = self._model()
        total = structure.count(net)
        packed = sum(stack.nbytes for stack in packed_experts(net).values())
        whole = phases.sizes(self._cell, net, self._config, added) if self._train.sharded else {}
        AcceleratorState._reset_state(True)  # accelerate keeps one precision for a process
        with self._ranks() as rank:
            accelerator = self._accelerator(rank)
            if self._train.sharded:
                net = self._shard(net, accelerator)
            with FakeTensors(allow_non_fake_inputs=self._train.sharded), valueless(), in_groups(), self._kernels():
                self._materialise(net, accelerator)
                batches = shape.drawn(self._layout, times)
                micro = [self._objective.batch(self._layout, examples).to(self._device.on) for examples in batches]
                if (layers := structure.decoder_layers(net, self._config)) is not None:
                    mark_layers(layers, self._live)
                if (slot := self._settings.method.optim) is not None:
                    figures = self._steps(slot, net, added, micro, accelerator)
                else:
                    figures = probe.forward(net, micro[0], accelerator, self._live, self._objective)
        trainable = structure.count(net, trainable=True) if self._settings.method.tuned else 0
        AcceleratorState._reset_state(True)
        if self._train.total_devices > 1 and not self._train.sharded:
            buckets = sum(p.nbytes for p in net.parameters() if p.requires_grad)
            count_buckets(figures, buckets, self._live, len(micro) > 1)
        flops = figures.flops_per_token + figures.recomputed_flops_per_token  # recomputation takes time too
        resident = {f"resident:{kind}": value for kind, value in dataclasses.asdict(figures.resident).items()}
        others = resident | whole | {"total": total, "trainable": trainable, "flops_per_token": flops}
        others["unpacked"] = 3.0 * packed  # beside 4 bits, where experts lie in 16 until they are packed
        if self._trace is not None:
            others["single"] = self._trace.largest
            others["unused"] = self._trace.reserved() - self._live.peak
            others["least"] = self._trace.reserved(capacity=0) - self._live.peak
            others["holes"] = self._trace.reserved((ROUNDING, ROUNDING)) - self._live.peak
            others["uneven"] = 0.0
        others |= self._work(sum(batch.padded for batch in micro), len(micro))
        windows = peaks_by_window(
            self._live, self._config.get_text_config().num_hidden_layers, figures.resident.optimizer
        )
        return Line(windows, others)

    def _model(self) -> tuple[nn.Module, set[str]]:
        """The model on the device "meta", and the names of its adapters' parameters."""
        net, added = empty_weights.shell(self._cell, self._config)
        own = (weight for name, weight in structure.stacks(net).items() if name not in added)
        if any(experts.dtype is not torch.bfloat16 for experts in own):
            raise UserError(
                "Experts in stacks require model.dtype=bfloat16: torch predicts their products in bfloat16 only."
            )
        if self._layout.flat:
            attention.enable(net, self._device.kernels)
        if self._settings.fast and not self._train.compile and self._device.kernels == "cuda":
            layer_kernels.attach(structure.inner(net))
        if self._train.gradient_checkpointing:
            gradient_checkpointing.enable(net, stored=False)
        return net, added

    def _ranks(self) -> AbstractContextManager[distributed.Rank | None]:
        return distributed.pretended(self._train.total_devices) if self._train.sharded else nullcontext()

    def _accelerator(self, rank: distributed.Rank | None) -> Accelerator:
        cpu = self._device.on == CPU
        if rank is not None:
            return rank.accelerator(True, self._bf16, cpu=cpu)
        return Accelerator(mixed_precision="bf16" if self._bf16 else "no", cpu=cpu)

    def _kernels(self) -> AbstractContextManager[Any]:
        """A context in which operations seem to be those of the device."""
        cuda = self._device.kernels == "cuda"
        return CudaKernels(self._bf16 and self._device.on == CPU) if cuda else nullcontext()

    def _shard(self, net: nn.Module, accelerator: Accelerator) -> nn.Module:
        """Shard `net` on "meta", as the ranks' shares must be numbers."""
        if self._settings.fast:
            with FakeTensors(allow_non_fake_inputs=True), accelerator.autocast():
                loss.enable(net, self._device.kernels)  # before it is sharded, as in a run
                uncast_inputs.enable(net)
                fused_lora.enable(net, once=False)
        shards.forget_scales(net)
        return accelerator.prepare_model(net)

    def _materialise(self, net: nn.Module, accelerator: Accelerator) -> None:
        if self._train.sharded:
            materialise_shares(net, self._device.on)
            return
        materialise(net, self._device.on)
        if self._settings.fast:
            with accelerator.autocast():
                state = loss.enable(net, self._device.kernels, self._objective.by_token, self.fuses_loss)
            self.fuses_loss = state.startswith("on")
            uncast_inputs.enable(net)
            fused_lora.enable(net, once=not self._train.compile)
            fused_dora.enable(net, compiled=self._train.compile, kernels=self._device.kernels)

    def _steps(
        self, slot: dict[str, Any], net: nn.Module, added: set[str], micro: list[Batch], accelerator: Accelerator
    ) -> Probe:
        """The figures of steps of the optimizer `slot`. added: names of the adapters' parameters."""
        if self._train.activation_offload:
            activation_offload.enable(net, host=ELSEWHERE)
        adapters = {id(p) for name, p in net.named_parameters() if name in added}
        make, count = instantiate(slot, _convert_="all"), 2

        def grouping(model: nn.Module) -> Optimizer:
            optimizer = make(model)
            if self._settings.fast:
                optimizers.group_steps(optimizer)
            return optimizer

        build: Callable[[nn.Module], Any] = grouping
        if not slot.get("per_layer"):  # then the optimizer can step twice after one backward pass
            build, count = stepping_twice(build, self._live), 1
        if self._train.sharded:
            micro = [batch for batch in micro for _ in range(self._train.total_devices)]  # as if all had the same
        else:
            net = accelerator.prepare_model(net, device_placement=False)
        norm = self._train.max_grad_norm
        return probe.steps(
            net, adapters, build, micro, norm, accelerator, self._live, count=count, objective=self._objective
        )

    def _work(self, padded: int, count: int) -> dict[str, float]:
        """The work of a step by kind: of its optimizer, and for each of the `padded` tokens of `count` micro-batches.

        Operations that the host begins are of a micro-batch, and of the optimizer. Decompositions are of a first step.
        """
        if self._roofline is None or not self._settings.method.tuned:
            return {}
        step, optimizer = self._roofline.work["step"], self._roofline.work["optimizer"]
        work = {f"optimizer:{kind}": float(optimizer[kind]) for kind in (*WORK, "launches")}
        work |= {f"token:{kind}": step[kind] / padded for kind in WORK}
        work |= {"decomposing": self._roofline.decomposing, "untimed": float(self._roofline.untimed)}
        return work | {"launches": step["launches"] / count}
