"""Predicts the memory and FLOPs of cells without weights: the same steps on the same model, in tensors without storage.

Models of one and of two decoder layers are built from the model's dimensions, quantised and adapted as the cell asks,
and probed exactly as a run probes its real model. If all layers are alike, each figure is linear in their number. So is
the peak of each window of a step: forward and backward of the first and of the last layer, the head between them, the
optimizer. The window with the highest peak may change with depth, so each window is extrapolated, and the peak is the
highest at the real depth. Extrapolation in the batch size gives the largest batch that fits. Where layers differ,
or the method names some of them, all are built.

What CUDA's allocator reserves beside the peak need not be linear: where an embedding is large beside a layer, holes of
its size come and go with depth. Then a cell whose live tensors fit is probed with all its layers, which takes seconds.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import re
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from harness.errors import UserError
from harness.job.data import batching
from harness.job.measure.device import check_float16
from harness.job.models import empty_weights, loading
from harness.job.predict import examples, phases
from harness.job.predict.extrapolation import Line
from harness.job.predict.fake_probe import CPU, WORK, FakeProbe, PredictedDevice
from harness.job.predict.groups import without_rates
from harness.job.predict.shapes import Shape, assumed_shape, even_parts
from harness.job.training import attention, objectives
from harness.protocol import CardRates
from harness.record import Calibration, Cell
from harness.settings import AUTO, Settings, TrainSettings, plain

LIMIT = 4096  # sequences (or packs) of the largest micro-batch that is looked for
PROBED = 64  # of them at most that are probed with all layers; what is larger is extrapolated
OF_SOME_LAYERS = ("layers_to_transform", "adapter_layers")  # peft's settings
LAYER_NUMBER = re.compile(r"(?<![a-zA-Z_0-9])[0-9]")  # in the name of a module: not that of w1 or fc2


class Predictor:
    """Predicts cells, and caches results: cells that differ in learning rate or seed take the same.

    auto: the precision that ``auto`` means on the predicted device, bf16 or fp32.
    kernels: whose kernels compute there, ``cpu`` or ``cuda``.
    on: device of the tensors without storage. For a GPU torch must be built with CUDA.
    rates: of the card, for the work of the training (null: it is not predicted).
    calibration: of the device, for the time of its kernels (null: it is not predicted).
    """

    def __init__(
        self,
        data_root: str | None,
        auto: str,
        kernels: str = "cpu",
        on: torch.device = CPU,
        rates: CardRates | None = None,
        calibration: Calibration | None = None,
    ):
        self._data_root, self._auto = data_root, auto
        self._device, self._calibration = PredictedDevice(kernels, on, rates, calibration), calibration
        self._drawn: dict[str, examples.DrawnExamples | None] = {}
        self._shapes: dict[str, Shape] = {}
        self._lines: dict[str, Line] = {}
        self._wholes: dict[str, Line] = {}  # those of all layers
        self._configs: dict[str, tuple[PretrainedConfig, bool]] = {}
        self._layouts: dict[str, batching.Layout] = {}
        self._fusing_loss: set[str] = set()  # kinds of models, of any depth

    def predict(
        self, cell: Cell, architecture: dict[str, Any] | None, budget: int | None = None, safe: int | None = None
    ) -> dict[str, Any]:
        """What `cell` takes: bytes by kind (peak, resident), bytes that it needs and that CUDA's allocator reserves
        (null: not predicted), weights, FLOPs and tokens, as JSON.

        architecture: the model's dimensions, in place of its own config. budget: bytes, for the largest batch that fits
        (null if none does); null: it is not looked for, which takes half the time. safe: bytes, for the micro_batch of
        train.batch_size=auto (null otherwise): the largest even part of a step that fits, or else one sequence a
        device; null: the budget. Raises UserError if the cell does not work, and NeedsValues if the method depends on
        values of weights or gradients.

        With several devices the figures are of the one with the largest share of the batch. A sharded cell has figures
        of each of its phases, and of its machines' own memory, too.
        """
        cell = replace(cell, settings=_decided(cell.settings, self._auto))
        check_float16(cell.settings)
        train = cell.settings.train.validated()
        layout, devices = self._layout(cell, architecture), train.total_devices
        sizes_itself = train.sizes_itself
        if sizes_itself:
            room = budget if safe is None else safe
            if room is None:
                raise ValueError("To choose the micro-batch takes a budget.")
            size = self._fitting(cell, even_parts(train.micro_batch, devices), room, layout, architecture)
        else:
            size = train.micro_batch // devices
        shape = self._shape(cell, layout, size)
        line = self._line(cell, shape, 1, layout, architecture, budget)
        largest = None
        if budget is not None and not sizes_itself:
            largest = self._largest(cell, shape, layout, architecture, budget)
        return self._by_phase(cell, architecture, line, budget) | {
            "peak": {kind: round(value) for kind, value in line.peak.items()},
            "needed": round(line.taken),
            "reserved": _reserved(line, budget),
            "resident": {k.partition(":")[2]: round(v) for k, v in line.others.items() if k.startswith("resident:")},
            "total": round(line.others["total"]),
            "trainable": round(line.others["trainable"]),
            "flops": line.others["flops_per_token"] * shape.padded,
            "reference_flops": self._reference_flops(cell, shape, layout, architecture),
            "work": None if (work := _work(line, shape, devices)) is None or self._device.rates is None else work,
            "calibrated_seconds": _calibrated(work, self._calibration),
            "decomposition_seconds": _decomposing(line, self._calibration),
            "shape": {
                "sequences": shape.sequences,
                "tokens": max(sum(n for n, _ in batch) for batch in shape.micro),
                "steps": shape.steps,
                "raw": shape.raw,
                "padded": shape.padded,
                "real": shape.real,
                "lengths": shape.lengths,
            },
            "precision": cell.settings.train.precision,
            "micro_batch": size * devices if sizes_itself else None,
            "largest_batch": largest,
        }

    def _by_phase(
        self, cell: Cell, architecture: dict[str, Any] | None, line: Line, budget: int | None
    ) -> dict[str, Any]:
        """What each phase of the cell takes of a device, where another one than training may decide.

        Of a sharded cell also what it takes of its machines.
        """
        if not cell.settings.train.sharded:
            load = line.others["resident:weights"] + line.others["unpacked"]
            return {"phases": {"load": round(load), "train": round(line.taken)}} if line.others["unpacked"] else {}
        config, peak = self._config(cell, architecture)[0], sum(line.peak.values())
        of_devices = phases.devices(cell, config, line.others, peak, budget)
        return {
            "phases": of_devices,
            "host": phases.hosts(cell, line.others, of_devices, self._device.kernels == "cpu"),
        }

    def _fitting(
        self, cell: Cell, sizes: list[int], room: int, layout: batching.Layout, architecture: dict[str, Any] | None
    ) -> int:
        """The first of `sizes`, which fall, that takes at most `room` bytes; else the last."""

        def fits(size: int) -> bool:
            shape = self._shape(cell, layout, size)
            return self._line(cell, shape, 1, layout, architecture, room).taken <= room

        return sizes[min(bisect.bisect_left(sizes, True, key=fits), len(sizes) - 1)]

    def _reference_flops(
        self, cell: Cell, shape: Shape, layout: batching.Layout, architecture: dict[str, Any] | None
    ) -> float:
        """FLOPs of the base's forward pass over all pairs, before training; 0 if the objective refers to no base."""
        if not shape.reference:
            return 0.0
        settings = cell.settings
        method = replace(settings.method, adapt=None, init=None, optim=None)
        objective = "sft" if shape.marked else "dpo"  # kto reads more in a step
        train = replace(settings.train, gradient_checkpointing=False, objective=objective)
        base = replace(cell, rank=None, settings=replace(settings, method=method, train=train))
        return self._line(base, shape, 1, layout, architecture).others["flops_per_token"] * shape.reference

    def _largest(
        self, cell: Cell, shape: Shape, layout: batching.Layout, architecture: dict[str, Any] | None, budget: int
    ) -> int | None:
        """The largest train.batch_size, up to LIMIT, of such sequences or packs that takes at most `budget`."""
        train = cell.settings.train.validated()
        rows = train.micro_batch // train.total_devices if train.packing else shape.sequences
        once, more = (self._line(cell, shape, times, layout, architecture) for times in (1, 2))

        def most(line: Line, other: Line, times: int) -> int:
            """The largest number of sequences by two lines, of which `other` is `times` as large; 0 if none fits."""
            sizes = range(1, LIMIT + 1)
            return bisect.bisect_right(
                sizes, False, key=lambda size: line.through(other, 1, times, size / rows).taken > budget
            )

        largest = most(once, more, 2)
        if (once.uneven or more.uneven) and once.through(more, 1, 2, 1 / rows).live <= budget:
            # Near the largest, as holes do not grow evenly; but no larger than a probe has time for.
            near = max(2, min(largest, PROBED) // rows)
            once, more = (self._whole(cell, shape, times, layout, architecture) for times in (1, near))
            largest = most(once, more, near)
        return largest * train.total_devices or None

    def _line(
        self,
        cell: Cell,
        shape: Shape,
        times: int,
        layout: batching.Layout,
        architecture: dict[str, Any] | None,
        room: int | None = None,
    ) -> Line:
        """The figures at the model's depth, for micro-batches `times` as large as those of `shape`.

        room: bytes; of a cell whose live tensors fit there, and perhaps not what is reserved, all layers are probed.
        """
        key = _key(cell, shape, times, layout, architecture)
        if key not in self._lines:
            config, alike = self._config(cell, architecture)
            alike = alike and not _names_layers(plain(cell.settings.method))
            line = self._extended(cell, config, shape, times, layout) if alike else None
            self._lines[key] = line or self._whole(cell, shape, times, layout, architecture)
        line = self._lines[key]
        if room is not None and line.uneven and line.live <= room:
            return self._whole(cell, shape, times, layout, architecture)
        return line

    def _whole(
        self, cell: Cell, shape: Shape, times: int, layout: batching.Layout, architecture: dict[str, Any] | None
    ) -> Line:
        """As `_line`, of a model of all layers."""
        key = _key(cell, shape, times, layout, architecture)
        if key not in self._wholes:
            self._wholes[key] = self._probe(cell, self._config(cell, architecture)[0], shape, times, layout)
        return self._wholes[key]

    def _extended(
        self, cell: Cell, config: PretrainedConfig, shape: Shape, times: int, layout: batching.Layout
    ) -> Line | None:
        """Extrapolate from two models of few layers to the depth of `config`.

        Returns None if the model is not deeper, or if the method needs more layers.
        """
        # Of a sharded model two layers may be whole at a time, so the first few layers are not representative.
        # With recomputation the last of two layers holds more than a single one, whose input may need no gradient.
        again = cell.settings.train.gradient_checkpointing
        few = (3, 4) if cell.settings.train.sharded else (2, 3) if again else (1, 2)
        layers = config.get_text_config().num_hidden_layers
        if layers <= few[0]:
            return None

        def probed(depth: int) -> Line:
            return self._probe(cell, empty_weights.with_depth(config, depth), shape, times, layout)

        try:
            one, two = map(probed, few)
            if few[0] == 1 and one.lacks_backward(two) and layers > 2:
                few, one, two = (2, 3), two, probed(3)
        except UserError:
            return None
        return one.through(two, *few, layers)

    def _config(self, cell: Cell, architecture: dict[str, Any] | None) -> tuple[PretrainedConfig, bool]:
        key = json.dumps([plain(cell.settings.model), architecture], sort_keys=True)
        if key not in self._configs:
            if architecture is not None:
                dimensions = dict(architecture)
                config = AutoConfig.for_model(dimensions.pop("model_type"), **dimensions)
            else:
                config = loading.config_of(cell.settings.model)
            self._configs[key] = (config, empty_weights.alike(config, cell.settings.model.trust_remote_code))
        return self._configs[key]

    def _layout(self, cell: Cell, architecture: dict[str, Any] | None) -> batching.Layout:
        decisive = [plain(cell.settings.method), plain(cell.settings.model), cell.settings.speedups, architecture]
        key = json.dumps(decisive, sort_keys=True)
        if key not in self._layouts:
            config, alike = self._config(cell, architecture)
            net = empty_weights.outline(cell, config, 1, alike)
            self._layouts[key], _ = attention.layout(net, cell.settings.speedups or AUTO, pad=0)
        return self._layouts[key]

    def _probe(self, cell: Cell, config: PretrainedConfig, shape: Shape, times: int, layout: batching.Layout) -> Line:
        """The probe's figures for a model of `config`, on micro-batches `times` as large as those of `shape`."""
        settings = cell.settings
        model = empty_weights.with_depth(config, 1).to_json_string(use_diff=False)
        kind = json.dumps([plain(settings.model), plain(settings.method), settings.train.precision, model])
        probe = FakeProbe(cell, config, layout, self._device, kind in self._fusing_loss)
        line = probe.line(shape, times)
        if probe.fuses_loss:
            self._fusing_loss.add(kind)
        return line

    def _shape(self, cell: Cell, layout: batching.Layout, size: int) -> Shape:
        """The largest batch that the cell trains on (an untuned cell: validates on), `size` sequences a device.

        It is taken from the data if tokenizer and data are on this machine. Otherwise every sequence is assumed to have
        max_length tokens, all with loss; where the data are here, the tokens of all steps are estimated by characters.
        """
        key = json.dumps([_drawn_by(cell), dataclasses.asdict(layout), size], sort_keys=True)
        if key not in self._shapes:
            self._shapes[key] = self._real_shape(cell, layout, size) or self._assumed_shape(cell, layout, size)
        return self._shapes[key]

    def _real_shape(self, cell: Cell, layout: batching.Layout, size: int) -> Shape | None:
        sequences = self._examples(cell)
        return None if sequences is None else self._shape_of(sequences, cell, layout, size)

    def _assumed_shape(self, cell: Cell, layout: batching.Layout, size: int) -> Shape:
        assumed = assumed_shape(cell.settings.train.validated(), size, _marked(cell.settings))
        key = json.dumps(["characters", *_drawn_by(cell)])
        if key not in self._drawn:
            self._drawn[key] = examples.draw_by_characters(cell, self._data_root)
        if (schedule := self._drawn[key]) is None:
            return assumed
        counted = self._shape_of(schedule, cell, layout, size)
        totals = {name: getattr(counted, name) for name in ("steps", "raw", "padded", "reference")}
        return replace(assumed, lengths="characters", **totals)

    def _shape_of(self, schedule: examples.DrawnExamples, cell: Cell, layout: batching.Layout, size: int) -> Shape:
        settings, train = cell.settings, cell.settings.train
        steps = batching.pieces(schedule.steps, size, train)
        batches = [batch for step in steps for batch in step]
        largest = max(steps, key=lambda step: max(map(layout.tokens, step)))
        shares = [largest[rank :: settings.train.total_devices] for rank in range(settings.train.total_devices)]
        fullest = max(shares, key=lambda share: max(map(layout.tokens, share)))
        return Shape(
            [[(len(each.ids), each.prompt) for one in batch for each in one.sequences] for batch in fullest],
            steps=len(steps),
            raw=sum(len(example.ids) for batch in batches for example in batch),
            padded=sum(layout.tokens(batch) for batch in batches),
            real=True,
            paired=train.paired and not _marked(settings),
            marked=_marked(settings),
            reference=sum(map(layout.tokens, objectives.by_length(schedule.referred, size))),
        )

    def _examples(self, cell: Cell) -> examples.DrawnExamples | None:
        """What the cell takes of its data; None if that is not on this machine."""
        key = json.dumps(_drawn_by(cell))
        if key not in self._drawn:
            self._drawn[key] = examples.draw(cell, self._data_root)
        return self._drawn[key]


def _reserved(line: Line, budget: int | None) -> int | None:
    """Bytes that CUDA's allocator reserves, which gives free ones back before it takes more than the budget."""
    if line.reserved is None:
        return None
    return round(line.reserved if budget is None else max(line.taken, min(line.reserved, budget)))


def _key(cell: Cell, shape: Shape, times: int, layout: batching.Layout, architecture: dict[str, Any] | None) -> str:
    """What the figures of a step depend on."""
    settings, train = cell.settings, cell.settings.train
    decisive = [without_rates(plain(settings.method)), plain(settings.model), architecture, train.precision]
    decisive += [_share(train), train.activation_offload, train.gradient_checkpointing, train.objective, train.compile]
    return json.dumps([decisive, shape.micro, shape.marked, times, dataclasses.asdict(layout)], sort_keys=True)


def _marked(settings: Settings) -> bool:
    """Whether training compares single answers with marks."""
    return settings.train.paired and settings.data.marked


def _work(line: Line, shape: Shape, devices: int) -> dict[str, float] | None:
    """Of all training steps on one device, by kind, without what devices send each other; None where it is not known.

    Kinds are those of WORK, and operations that the host begins: in forward and backward passes ``launches``, and those
    of the ``optimizer``.
    """
    if "launches" not in line.others or shape.steps is None:
        return None
    of = line.others
    work = {kind: of[f"token:{kind}"] * shape.padded / devices + of[f"optimizer:{kind}"] * shape.steps for kind in WORK}
    launches = of["launches"] * len(shape.micro) * shape.steps
    return work | {"launches": launches, "optimizer": of["optimizer:launches"] * shape.steps}


def _calibrated(work: dict[str, float] | None, calibration: Calibration | None) -> float | None:
    """Seconds of all training steps by the kernels that were timed."""
    if work is None or calibration is None:
        return None
    return calibration.total(work["timed"], work["launches"], work["optimizer"])


def _decomposing(line: Line, calibration: Calibration | None) -> float | None:
    """Seconds in which the optimizer's first step decomposes gradients, by the kernels that were timed.

    None without a calibration, or if it lacks one of these kernels.
    """
    if calibration is None or round(line.others.get("untimed", 0.0)):
        return None
    return line.others.get("decomposing", 0.0)


def _drawn_by(cell: Cell) -> list[Any]:
    """What decides which examples the cell takes, and how long they are."""
    settings = cell.settings
    decisive = [plain(settings.model), plain(settings.data), plain(settings.train), cell.seed]
    return decisive + ([settings.eval.tasks, settings.eval.limit] if settings.train.refers else [])


def _share(train: TrainSettings) -> list[Any]:
    """What decides the share of weights and gradients of a device."""
    return [train.total_devices if train.sharded else train.total_devices > 1, train.sharded]


def _names_layers(method: Any) -> bool:
    """Whether the settings `method` treat decoder layers unlike: some are named by number, as `layers.20.` or by a
    pattern, or the uppermost are counted."""
    if isinstance(method, dict):
        own = any(value not in (None, []) for key, value in method.items() if key in OF_SOME_LAYERS)
        return own or any(map(_names_layers, [*method, *method.values()]))
    if isinstance(method, list):
        return any(map(_names_layers, method))
    return isinstance(method, str) and LAYER_NUMBER.search(method) is not None


def _decided(settings: Settings, auto: str) -> Settings:
    """The cell's settings with the precision ``auto`` replaced by `auto`, for training and for loading weights."""

    def decided(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: decided(v) for k, v in value.items()}
        return auto if value == "auto" else value

    method = replace(settings.method, load=decided(settings.method.load))
    train = replace(settings.train, precision=decided(settings.train.precision))
    return replace(settings, method=method, train=train)
