"""Predicts what cells would take, without weights: the same steps on the same model, in tensors that have no storage.

A model of one and one of two decoder layers are built from its dimensions alone, changed and quantised as the cell
asks, and probed exactly as a run probes its real model. All layers being alike, each figure is a straight line in
their number; so is, in each window of a step, its peak: forward and backward of the first and of the last layer, the
head between them, the optimizer. What is highest with few layers need not be with many, so a line is drawn for each
window, and the peak is the highest at the real depth. Lines in the batch size give the largest batch that fits.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt
from hydra.utils import instantiate
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.optim import Optimizer
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from harness import env
from harness.errors import UserError
from harness.job.cuda_kernels import CudaKernels
from harness.job.data import encoding
from harness.job.data.encoding import Batch
from harness.job.measure import device
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.workspaces import WORKSPACES
from harness.job.models import loading
from harness.job.models.loading import NeedsValues
from harness.job.training import activation_offload, attention, distributed, gradient_checkpointing, loss, probe
from harness.record import Cell, Probe, device_count, fits_itself, micro_batch

CPU = torch.device("cpu")
ELSEWHERE = torch.device("meta")  # the memory of the host, which is not counted
NUMBER = torch.ops.aten._local_scalar_dense.default  # a tensor's one value
LIMIT = 4096  # sequences (or packs) a micro-batch, beyond which nobody asks how many more would fit


@dataclass(frozen=True)
class Shape:
    """The micro-batches of the largest step: of each sequence its tokens, and how many of them are the prompt's.

    Of several devices, those of the one that has most to take.

    raw: tokens of the whole training without padding, for its time; real: taken from the data, not assumed.
    """

    micro: list[list[tuple[int, int]]]
    raw: int
    padded: int
    real: bool

    @property
    def sequences(self) -> int:
        """How many the largest micro-batch has."""
        return max(map(len, self.micro))

    def batches(self, layout: encoding.Layout, times: int) -> list[Batch]:
        """Such micro-batches, or ones `times` as large, of tokens 0; of more than two the two largest stand for all."""
        sized = [[encoding.Example([0] * n, prompt) for n, prompt in batch] * times for batch in self.micro]
        if len(sized) > 2:
            sized = sorted(sized, key=layout.tokens)[-2:]
        return [layout.batch(examples) for examples in sized]


@dataclass(frozen=True)
class Line:
    """Figures of a probe that are linear in depth and batch: peaks by window and kind, and the others by name."""

    windows: dict[str, dict[str, float]]
    others: dict[str, float]

    def through(self, other: Line, x0: float, x1: float, x: float) -> Line:
        """The point at `x` of the line through self at `x0` and `other` at `x1`."""

        def at(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
            return {name: a[name] + (b[name] - a[name]) * (x - x0) / (x1 - x0) for name in a}

        windows = {name: at(kinds, other.windows[name]) for name, kinds in self.windows.items()}
        return Line(windows, at(self.others, other.others))

    @property
    def peak(self) -> dict[str, float]:
        """Bytes by kind in the highest window."""
        return max(self.windows.values(), key=lambda kinds: sum(kinds.values()))


class Planner:
    """Predictions for cells, remembered: points that differ in learning rate or seed take the same.

    auto: what the precision ``auto`` means on the device that is planned for, bf16 or fp32.
    kernels: whose kernels compute there, ``cpu`` or ``cuda``.
    on: where the tensors without storage seem to lie. Tensors that seem to lie on a GPU need a torch that knows one.
    """

    def __init__(self, data_root: str | None, auto: str, kernels: str = "cpu", on: torch.device = CPU):
        self._data_root, self._auto, self._kernels, self._on = data_root, auto, kernels, on
        self._drawn: dict[str, list[list[list[encoding.Example]]] | None] = {}
        self._shapes: dict[str, Shape] = {}
        self._lines: dict[str, Line] = {}
        self._configs: dict[str, tuple[PretrainedConfig, bool]] = {}
        self._layouts: dict[str, encoding.Layout] = {}

    def predict(
        self, cell: Cell, architecture: dict[str, Any] | None, budget: int, safe: int | None = None
    ) -> dict[str, Any]:
        """What `cell` would take, in bytes by kind (peak, resident), weights, FLOPs and tokens; JSON.

        architecture: the model's dimensions, where its own config is not to be asked. budget: bytes, for the largest
        batch that fits (null where none does). safe: bytes, for micro_batch: that of train.batch_size=auto (null
        otherwise), the largest one of even parts of a step within them, or else of one sequence a device. Raises
        UserError if the cell can't be, and NeedsValues if the method does with the values of weights or gradients what
        nothing without values can tell of.

        Of several devices it is what the one with the largest share of the batch takes.
        """
        cell = dataclasses.replace(cell, settings=_decided(cell.settings, self._auto))
        layout, devices = self._layout(cell, architecture), device_count(cell.settings)
        chosen = fits_itself(cell)
        if chosen:
            sizes = even_parts(micro_batch(cell.settings["train"]), devices)
            room = budget if safe is None else safe

            def fits(size: int) -> bool:
                shape = self._shape(cell, layout, size)
                return sum(self._line(cell, shape, 1, layout, architecture).peak.values()) <= room

            size = sizes[min(bisect.bisect_left(sizes, True, key=fits), len(sizes) - 1)]
        else:
            size = cell.settings["train"]["batch_size"] // devices
        shape = self._shape(cell, layout, size)
        line = self._line(cell, shape, 1, layout, architecture)
        return {
            "peak": {kind: round(value) for kind, value in line.peak.items()},
            "resident": {k.partition(":")[2]: round(v) for k, v in line.others.items() if k.startswith("resident:")},
            "total": round(line.others["total"]),
            "trainable": round(line.others["trainable"]),
            "flops": line.others["flops_per_token"] * shape.padded,
            "shape": {
                "sequences": shape.sequences,
                "tokens": max(sum(n for n, _ in batch) for batch in shape.micro),
                "raw": shape.raw,
                "padded": shape.padded,
                "real": shape.real,
            },
            "precision": cell.settings["train"]["precision"],
            "micro_batch": size * devices if chosen else None,
            "largest_batch": None if chosen else self._largest(cell, shape, layout, line, architecture, budget),
        }

    def _largest(
        self,
        cell: Cell,
        shape: Shape,
        layout: encoding.Layout,
        line: Line,
        architecture: dict[str, Any] | None,
        budget: int,
    ) -> int | None:
        """The largest train.batch_size, up to LIMIT, of sequences or packs like these whose peak is within `budget`."""
        twice, train = self._line(cell, shape, 2, layout, architecture), cell.settings["train"]
        rows = train["batch_size"] // device_count(cell.settings) if train.get("packing") else shape.sequences

        def fits(size: int) -> bool:
            return sum(line.through(twice, 1, 2, size / rows).peak.values()) <= budget

        if not fits(1):
            return None
        low, high = 1, LIMIT
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low * device_count(cell.settings)

    def _line(
        self, cell: Cell, shape: Shape, times: int, layout: encoding.Layout, architecture: dict[str, Any] | None
    ) -> Line:
        """The figures at the model's own depth, for micro-batches `times` as large as that of `shape`."""
        settings = cell.settings
        taken = [_taken(settings["method"]), settings["model"], architecture, settings["train"]["precision"]]
        switches = ("activation_offload", "gradient_checkpointing")
        taken += [_share(settings), *(settings["train"].get(switch, False) for switch in switches)]
        key = json.dumps([taken, shape.micro, times, dataclasses.asdict(layout)], sort_keys=True)
        if key not in self._lines:
            config, alike = self._config(cell, architecture)
            if alike and (line := self._extended(cell, config, shape, times, layout)) is not None:
                self._lines[key] = line
            else:
                self._lines[key] = self._probe(cell, config, shape, times, layout)
        return self._lines[key]

    def _extended(
        self, cell: Cell, config: PretrainedConfig, shape: Shape, times: int, layout: encoding.Layout
    ) -> Line | None:
        """The line through two models of few layers, at the depth of `config`.

        None if that is not deeper, or the method wants more layers.
        """
        # Of a sharded model two layers may be whole at a time, so that the first few are no measure of the others.
        # Where layers are computed again, the last holds more than an only one, whose input may need no gradient.
        again = cell.settings["train"].get("gradient_checkpointing")
        few = (3, 4) if _sharded(cell.settings) else (2, 3) if again else (1, 2)
        if config.num_hidden_layers <= few[0]:
            return None
        try:
            one, two = (self._probe(cell, loading.with_depth(config, n), shape, times, layout) for n in few)
        except UserError:
            return None
        return one.through(two, *few, config.num_hidden_layers)

    def _config(self, cell: Cell, architecture: dict[str, Any] | None) -> tuple[PretrainedConfig, bool]:
        key = json.dumps([cell.settings["model"], architecture], sort_keys=True)
        if key not in self._configs:
            if architecture is not None:
                dimensions = dict(architecture)
                config = AutoConfig.for_model(dimensions.pop("model_type"), **dimensions)
            else:
                config = loading.config_of(cell.settings["model"])
            self._configs[key] = (config, loading.alike(config, loading.trusted(cell.settings["model"])))
        return self._configs[key]

    def _layout(self, cell: Cell, architecture: dict[str, Any] | None) -> encoding.Layout:
        key = json.dumps([cell.settings[k] for k in ("method", "model", "speedups")] + [architecture], sort_keys=True)
        if key not in self._layouts:
            net = loading.outline(cell, self._config(cell, architecture)[0], 1)
            self._layouts[key], _ = attention.layout(net, cell.settings["speedups"], pad=0)
        return self._layouts[key]

    def _probe(self, cell: Cell, config: PretrainedConfig, shape: Shape, times: int, layout: encoding.Layout) -> Line:
        """The probe's figures for a model of `config`, on micro-batches `times` as large as those of `shape`."""
        settings = cell.settings
        net, added = loading.shell(cell, config)
        own = (weight for name, weight in loading.stacks(net).items() if name not in added)
        if any(experts.dtype is not torch.bfloat16 for experts in own):
            raise UserError(
                "Of experts in stacks torch predicts products in bfloat16 alone; plan model.dtype=bfloat16."
            )
        if layout.flat:
            attention.enable(net, self._kernels)
        trained, chunked = settings["method"]["optim"] is not None, settings["speedups"] != "off"
        if settings["train"].get("gradient_checkpointing"):
            gradient_checkpointing.enable(net, stored=False)
        total = loading.count(net)
        AcceleratorState._reset_state(True)  # accelerate keeps one precision a process
        bf16, devices, sharded = settings["train"]["precision"] == "bf16", device_count(settings), _sharded(settings)
        live = LiveBytes(self._on, WORKSPACES if self._kernels == "cuda" else None)
        with distributed.pretended(devices) if sharded else nullcontext() as rank:
            if sharded:
                accelerator = rank.accelerator(sharded, bf16, cpu=self._on == CPU)
                if chunked:
                    with FakeTensorMode(allow_non_fake_inputs=True), accelerator.autocast():
                        loss.enable(net, self._kernels)  # before it is sharded, as in a run
                for layer in (module for module in net.modules() if isinstance(module, Linear4bit)):
                    layer.weight.quant_state = None  # accelerate asks for a state_dict, which needs its values
                net = accelerator.prepare_model(net)  # while it is on "meta": who has which share must be a number
            else:
                accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=self._on == CPU)
            seemingly = CudaKernels(bf16 and self._on == CPU) if self._kernels == "cuda" else nullcontext()
            with FakeTensorMode(allow_non_fake_inputs=sharded), _valueless(), seemingly:
                _materialise_shares(net, self._on) if sharded else materialise(net, self._on)
                if chunked and not sharded:
                    with accelerator.autocast():
                        loss.enable(net, self._kernels)
                micro = [batch.to(self._on) for batch in shape.batches(layout, times)]
                if (layers := loading.decoder_layers(net, config)) is not None:
                    _mark_layers(layers, live)
                if trained:
                    if settings["train"].get("activation_offload"):
                        activation_offload.enable(net, host=ELSEWHERE)
                    adapters = {id(p) for name, p in net.named_parameters() if name in added}
                    slot = settings["method"]["optim"]
                    build, count = instantiate(slot, _convert_="all"), 2
                    if not slot.get("per_layer"):  # then steps can be taken without going backward again
                        build, count = _stepping_twice(build, live), 1
                    if sharded:
                        micro = [batch for batch in micro for _ in range(devices)]  # as if each had the same
                    else:
                        net = accelerator.prepare_model(net, device_placement=False)
                    norm = settings["train"]["max_grad_norm"]
                    found = probe.steps(net, adapters, build, micro, norm, accelerator, live, count=count)
                else:
                    found = probe.forward(net, micro[0], accelerator, live)
        trainable = loading.count(net, trainable=True) if trained else 0
        AcceleratorState._reset_state(True)
        if devices > 1 and not sharded:
            buckets = sum(p.nbytes for p in net.parameters() if p.requires_grad)
            _in_buckets(found, buckets, live, len(micro) > 1)
        flops = found.flops_per_token + found.recomputed_flops_per_token  # all that the device does takes its time
        resident = {f"resident:{kind}": value for kind, value in dataclasses.asdict(found.resident).items()}
        return Line(
            _windows(live, config.num_hidden_layers, found.resident.optimizer),
            resident | {"total": total, "trainable": trainable, "flops_per_token": flops},
        )

    def _shape(self, cell: Cell, layout: encoding.Layout, size: int) -> Shape:
        """The largest batch that the cell would train on (an untuned one: validate on), `size` sequences a device.

        Where tokenizer and data are on this machine they are asked; else every sequence is taken to have max_length
        tokens, with a loss on all of them.
        """
        settings = cell.settings
        asked = [settings["model"], settings["data"], settings["train"], cell.seed, dataclasses.asdict(layout), size]
        key = json.dumps(asked, sort_keys=True)
        if key not in self._shapes:
            self._shapes[key] = self._real_shape(cell, layout, size) or _assumed_shape(settings, size)
        return self._shapes[key]

    def _real_shape(self, cell: Cell, layout: encoding.Layout, size: int) -> Shape | None:
        settings, train = cell.settings, cell.settings["train"]
        if (steps := self._examples(cell)) is None:
            return None
        steps = encoding.pieces(steps, size, train)
        batches = [batch for step in steps for batch in step]
        largest = max(steps, key=lambda step: max(map(layout.tokens, step)))
        shares = [largest[rank :: device_count(settings)] for rank in range(device_count(settings))]
        fullest = max(shares, key=lambda share: max(map(layout.tokens, share)))
        return Shape(
            [[(len(example.ids), example.prompt) for example in batch] for batch in fullest],
            raw=sum(len(example.ids) for batch in batches for example in batch),
            padded=sum(layout.tokens(batch) for batch in batches),
            real=True,
        )

    def _examples(self, cell: Cell) -> list[list[list[encoding.Example]]] | None:
        """The micro-batches of each step as the cell asks for them; None where they can't be had here."""
        key = json.dumps([cell.settings[name] for name in ("model", "data", "train")] + [cell.seed])
        if key not in self._drawn:
            self._drawn[key] = self._draw(cell)
        return self._drawn[key]

    def _draw(self, cell: Cell) -> list[list[list[encoding.Example]]] | None:
        settings, train = cell.settings, cell.settings["train"]
        path = settings["data"]["load"].get("path")
        if path is not None and self._data_root is None and not os.path.isfile(path):
            return None  # of the hub
        try:
            of = settings["model"]
            tokenizer = AutoTokenizer.from_pretrained(loading.source(of), local_files_only=True, **loading.which(of))
        except (OSError, ValueError):
            return None
        splits = encoding.splits(settings["data"], self._data_root)
        encode = encoding.encoder(tokenizer, settings["data"], train["max_length"])
        if settings["method"]["optim"] is not None:
            return encoding.scheduled(splits["train"], train, cell.seed, encode)
        held_out = encode(splits["validation"][: train["validation_items"]])
        return [[held_out[i : i + train["batch_size"]]] for i in range(0, len(held_out), train["batch_size"])]


def _in_buckets(found: Probe, size: int, live: LiveBytes, accumulated: bool) -> None:
    """Count gradients as they are held with DDP: always, where they are added up, in `size` bytes; beside that, until
    the last micro-batch, those of the others.

    There they have the weights' dtype, where one device has those of 16-bit weights with masters in fp32.
    """
    share = size / found.gradients
    found.resident.gradients = found.gradients = size
    for name, peak in live.windows.items():
        if peak.kinds:
            beside = round(share * peak.kinds["gradients"]) if accumulated and name != "optimizer" else 0
            peak.kinds["gradients"] = size + beside


def _sharded(settings: dict[str, Any]) -> bool:
    return settings["train"].get("parallel") == "fsdp"


def _share(settings: dict[str, Any]) -> list[Any]:
    """What decides how much of the weights and gradients a device has."""
    return [device_count(settings) if _sharded(settings) else device_count(settings) > 1, _sharded(settings)]


def _assumed_shape(settings: dict[str, Any], size: int) -> Shape:
    train = settings["train"]
    length, step = train["max_length"], micro_batch(train) * train.get("grad_accum", 1)
    tokens = step * length * train.get("max_steps", 1)
    tokens = min(tokens, train.get("max_tokens") or tokens)
    share = -(-step // (size * device_count(settings)))
    return Shape([[(length, 0)] * size] * share, raw=tokens, padded=tokens, real=False)


def even_parts(step: int, devices: int) -> list[int]:
    """Sizes of micro-batches, largest first, that cut a step into parts as even as can be, as many for each device."""
    sizes = {-(-step // (devices * count)) for count in range(1, step // devices + 1)}
    return sorted((size for size in sizes if -(-step // size) % devices == 0), reverse=True)


def _mark_layers(layers: nn.ModuleList, live: LiveBytes) -> None:
    """Begin a window of `live` where the first, the last and the layers between them begin, forward and backward.

    A single layer is first and last: its windows stand for both, see `_windows`.
    """

    def before(layer: nn.Module, window: str) -> None:
        layer.register_forward_pre_hook(lambda *_: live.mark(window))

    def backward(layer: nn.Module, window: str) -> None:
        """Begin `window` as the gradient of the layer's output arrives."""

        def hook(_module, _inputs, output) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: live.mark(window))

        layer.register_forward_hook(hook)

    def at_input(_layer, inputs) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda _: live.mark("embedding backward"))

    layers[0].register_forward_pre_hook(at_input)
    before(layers[0], "first layer forward")
    if len(layers) > 2:
        before(layers[1], BETWEEN[0])
        backward(layers[-2], BETWEEN[1])
    if len(layers) > 1:
        before(layers[-1], "last layer forward")
        backward(layers[0], "first layer backward")
    backward(layers[-1], "last layer backward")
    layers[-1].register_forward_hook(lambda *_: live.mark("head"))


BETWEEN = ("middle layers forward", "middle layers backward")


def _stepping_twice(build: Callable[[nn.Module], Optimizer], live: LiveBytes) -> Callable[[nn.Module], Optimizer]:
    """Optimizers that take two steps on the same gradients: one that makes their state, one that has it already.

    Numbers that they ask a tensor for (Adafactor the norm of a weight, for the size of its step) are 1: they decide on
    no memory. The FLOPs are the second's. Forward and backward would be the same a second time, but for that state
    beside them: see `_windows`.
    """

    def built(net: nn.Module) -> Optimizer:
        optimizer = build(net)
        step = optimizer.step

        def twice() -> None:
            live.instead[NUMBER] = lambda tensor: 1.0
            before = live.flops
            step()
            live.flops = before
            step()
            del live.instead[NUMBER]

        optimizer.step = twice
        return optimizer

    return built


@contextmanager
def _valueless() -> Iterator[None]:
    """A context in which an operation that needs values, where there are none, raises NeedsValues."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise NeedsValues from error
    except AssertionError as error:
        if "FakeTensor" not in str(error):
            raise
        raise NeedsValues from error  # a tensor that is neither parameter nor buffer


def _windows(live: LiveBytes, depth: int, state: int) -> dict[str, dict[str, float]]:
    """Peaks by window and kind, as in a step that finds `state` bytes of the optimizer's.

    Those of the layers between are left out: a straight line is highest at its ends.
    """
    windows = {name: dict(peak.kinds) for name, peak in live.windows.items() if peak.kinds and name not in BETWEEN}
    for name, kinds in windows.items():
        if name != "optimizer":
            kinds["optimizer"] = state
    if depth == 1:
        windows["last layer forward"] = windows["first layer forward"]
        if "last layer backward" in windows:
            windows["first layer backward"] = windows["last layer backward"]
    return windows


class Params4bit(FakeTensor):
    """A packed matrix without storage. peft knows bitsandbytes' own class, which can't hold such, by its name."""


def materialise(net: nn.Module, on: torch.device) -> None:
    """Move `net` from "meta" to the device `on`, in tensors that have no storage; ties between parameters stay."""
    made: dict[int, Any] = {}

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device=on)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            if (state := getattr(tensor, "quant_state", None)) is not None:
                new.__class__, new.quant_state = Params4bit, state
                for level in probe.quant_states(tensor):
                    vars(level).update({k: moved(v) for k, v in vars(level).items() if isinstance(v, torch.Tensor)})
            if isinstance(tensor, Int8Params):
                new.CB = new.SCB = None  # its layer has them
            made[id(tensor)] = (new, tensor)  # held, so that no other takes its id
        return made[id(tensor)][0]

    for module in net.modules():  # of some methods, tensors lie in other dicts of a module than its parameters'
        others = [value for value in vars(module).values() if type(value) is dict]
        if isinstance(module, Linear8bitLt):
            others.append(vars(module.state))
        for store in [vars(module), *others]:
            store.update({k: moved(tensor) for k, tensor in store.items() if isinstance(tensor, torch.Tensor)})


def _materialise_shares(net: nn.Module, on: torch.device) -> None:
    """As `materialise`, of a sharded `net`, whose packed matrices are such only while they are whole."""

    def packed(layer: nn.Module, _inputs: Any) -> None:
        layer.weight.__class__, layer.weight.quant_state = Params4bit, layer.quant_state

    net.to_empty(device=on)
    for module in net.modules():
        for level in probe.quant_states(module):
            vars(level).update(
                {k: torch.empty_like(v, device=on) for k, v in vars(level).items() if isinstance(v, torch.Tensor)}
            )
        if isinstance(module, Linear4bit):
            module.register_forward_pre_hook(packed)


def _taken(method: Any) -> Any:
    """The settings `method` without those that no memory depends on, at any depth."""
    if isinstance(method, dict):
        return {k: _taken(v) for k, v in method.items() if k not in ("lr", "lora_alpha", "scale")}
    return method


def _decided(settings: dict[str, Any], auto: str) -> dict[str, Any]:
    """The cell's settings with `auto` for the precision ``auto``, in the loop and where weights are loaded."""

    def decided(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: decided(v) for k, v in value.items()}
        return auto if value == "auto" else value

    method = settings["method"] | {"load": decided(settings["method"]["load"])}
    train = settings["train"] | {"precision": decided(settings["train"]["precision"])}
    return settings | {"method": method, "train": train}


def _group(cell: Cell) -> str:
    """Equal for cells that take the same memory, if their batches have the same shape."""
    settings = cell.settings
    train = {k: v for k, v in settings["train"].items() if k != "max_steps"}
    return json.dumps([_taken(settings["method"]), settings["model"], settings["data"], train], sort_keys=True)


def answer(
    cells: list[tuple[Cell, dict[str, Any] | None]],
    data_root: str | None,
    budget: int | None,
    beside: int,
    tight: float,
    kernels: str | None,
) -> Iterator[dict[str, Any]]:
    """First what is planned for (``budget``, ``kernels``, ``environment``), then a ``prediction`` for each cell.

    budget: bytes of a card, which need not be here; null for all the memory of this machine's device.
    beside: bytes of the budget that tensors don't get; tight: share of it that train.batch_size=auto may take.
    kernels: whose kernels compute, ``cpu`` or ``cuda``; null for CUDA's if there is a budget, or a GPU here.
    """
    # Cells that take the same stay together, so that no two processes work out one thing.
    groups: dict[str, list[int]] = {}
    for i, (cell, _) in enumerate(cells):
        groups.setdefault(_group(cell), []).append(i)
    # Beside an accelerator begun anew: libraries touch it as they are imported, no fork survives that, and a backward
    # pass sets up threads for every device it sees. Else forked, before this process computes anything in threads.
    how = "spawn" if torch.accelerator.is_available() else "fork"
    with ProcessPoolExecutor(max(1, min(os.cpu_count() or 1, len(groups))), mp_context=get_context(how)) as pool:
        if how == "fork":
            pool.submit(int).result()
        here = device.here()
        environment = env.describe() | device.describe(here)
        kernels = kernels or ("cuda" if budget is not None or here.type == "cuda" else "cpu")
        elsewhere = kernels == "cuda" and (budget is not None or here.type != "cuda")  # today's cards compute in bf16
        bf16 = elsewhere or device.compute_dtype("auto") is torch.bfloat16
        planner = Planner(data_root, "bf16" if bf16 else "fp32", kernels)
        budget = budget or environment["device"]["memory_bytes"] or environment["cpu"]["memory_bytes"]
        room = budget - beside, int(tight * budget) - beside
        with device.seeing(""):  # each would take memory of the GPU
            asked = [pool.submit(_predict, planner, [cells[i] for i in members], *room) for members in groups.values()]
        predictions: dict[int, dict[str, Any]] = {}
        for members, future in zip(groups.values(), asked, strict=True):
            predictions |= zip(members, future.result(), strict=True)
    yield {"budget": budget, "kernels": kernels, "environment": environment}
    for i in range(len(cells)):
        yield {"prediction": predictions[i]}


def _predict(
    planner: Planner, cells: list[tuple[Cell, dict[str, Any] | None]], budget: int, safe: int | None = None
) -> list[dict[str, Any]]:
    out = []
    for cell, architecture in cells:
        try:
            out.append(planner.predict(cell, architecture, budget, safe))
        except UserError as error:
            out.append({"impossible": str(error)})
        except NeedsValues:
            out.append(
                {"unknown": f"method={cell.method} looks at values, which tensors without storage have none of."}
            )
    return out
