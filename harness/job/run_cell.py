"""Runs one cell with weights: load → probe → train → infer → merge → save → score.

What becomes of it, a failure included, is recording.py's part.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from hydra.utils import instantiate
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer

from harness import record, redact
from harness.job import prepared_inputs, shortage, speedups
from harness.job.data import batching
from harness.job.evaluate import decoding, linear_weights, scoring
from harness.job.evaluate.vllm import engine as vllm_engine
from harness.job.measure import device, disk_size, inference_speed, nvml
from harness.job.measure.gpu_state import GpuSampler
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.phases import Meter
from harness.job.measure.timing import matmul_peak
from harness.job.methods import optimizers
from harness.job.models import adapter_merge, adapting, checks, loading, saved, structure
from harness.job.reporter import Report, Reporter
from harness.job.tracker import Tracker
from harness.job.training import (
    activation_offload,
    attention,
    compiled,
    distributed,
    gradient_checkpointing,
    halving,
    loop,
    objectives,
    probe,
)
from harness.job.training.checkpoints import Checkpoints
from harness.protocol import RunCell
from harness.record import Disk, Gpu, Merge, Parameters, Probe, Record, Shortage


class LocalCell:
    """A running cell with weights: its phases in their order, and what one leaves for the next.

    weights: the folder that tuned weights are saved in, if that is asked for.
    """

    def __init__(
        self,
        request: RunCell,
        report: Report,
        weights: Path,
        rank: distributed.Rank | None,
        start_tracker: Callable[[], Tracker] | None,
    ):
        self.request, self.cell, self.settings, self.rank = request, request.cell, request.cell.settings, rank
        self._weights = weights
        self.inputs = prepared_inputs.of(self.settings, request.data_root, request.local.include_path)
        checks.check_length(self.settings.model, self.inputs.longest)
        self.tuned, self.objective = self.settings.method.tuned, objectives.of(self.settings.train)
        asked = request.smaller.batch_size if request.smaller else self.settings.train.micro_batch
        self.batch_size = asked // self.settings.train.total_devices  # of one device
        self.bf16 = device.compute_dtype(self.settings.train.precision) is torch.bfloat16
        self.sharded = rank is not None and self.settings.train.sharded
        self.accelerator = self._accelerator() if rank is None else rank.accelerator(self.sharded, self.bf16)
        self.meter = Meter(self.accelerator.device)
        self.reporter = Reporter(report, self.meter, start_tracker and start_tracker())
        self.holders = shortage.Holders()
        self.model: nn.Module | None = None
        self.items: pd.DataFrame | None = None
        self._loaded: dict[str, Any] = {}  # what the record's environment says of the model, and of its scoring
        self._speedups: dict[str, str] = {}  # by name: "on", or "off: " and the reason
        self._matmul_peak: float | None = None
        self._gpu_ids: str | None = None  # of those that trained together
        on = self.accelerator.device
        self._gpu = GpuSampler(on, nvml.watts(on) if on.type == "cuda" else None)
        self._gpus: list[Gpu] = []
        self._training_only = ExitStack()  # undoes what the model has for training alone

    @property
    def phase(self) -> str:
        return self.reporter.phase

    @property
    def step(self) -> int | None:
        return self.reporter.step

    def run(self, result: Record) -> None:
        """load → probe → train → infer → merge → save → score."""
        set_seed(self.cell.seed or 0)
        result.fingerprints, result.contamination = self.inputs.fingerprints, self.inputs.contamination
        self.load(result)
        if self.tuned:
            self.probe_training(result)
            self.train(result)
            if self.rank is not None and not self.go_on_alone(result):
                return
            halving.raise_if_ended(self._halving)
        else:
            self.probe_forward(result)
            self.validate_untuned(result)
        self.infer(result)
        if adapter_merge.quantised(self.model):
            result.merge = Merge(False, adapter_merge.rounding(self.model))
            self.score(result)  # as it was trained
            self.merge_expanded(result)
        else:
            self.merge_and_save(result)
            self.score(result)

    # load

    def load(self, result: Record) -> None:
        # A model that is to be sharded may be too large for one device.
        self._load("load", torch.device("cpu") if self.sharded else self.accelerator.device)
        result.parameters = Parameters(structure.count(self.model), structure.count(self.model, trainable=True))
        if not self.tuned:
            result.parameters.trainable = 0
        pad = self.inputs.tokenizer.pad_token_id
        switch, by_token = self.settings.speedups, self.objective.by_token
        self.layout, self._speedups = speedups.enable(self.model, switch, pad, self.accelerator, by_token)
        config = structure.inner(self.model).config
        self._loaded["attention"] = config._attn_implementation
        self._guess = self.objective.of_a_guess(config.get_text_config().vocab_size)
        self.validation = self.objective.batches(self.layout, self.inputs.held_out, self.batch_size)
        result.held_out = self.inputs.answers

    def _load(self, phase: str, on: torch.device) -> None:
        """Load and adapt the model on the device `on`."""
        with self._entered(phase) as see:
            self._adapt(loading.load(self.cell, on), see)

    @contextmanager
    def _entered(self, phase: str) -> Iterator[Callable[[Any], None]]:
        """A phase with its window. Yields a function to call with tensors that no operation made, such as weights."""
        self.reporter.enter(phase)
        with self.meter.window(phase) as memory, self.meter.live(memory) as see:
            yield see

    def _adapt(self, base: nn.Module, see: Callable[[Any], None]) -> None:
        self._loaded |= structure.describe(base)
        own = {id(p) for p in base.parameters()}
        self.model = adapting.adapt(base, self.cell, partial(self.inputs.samples, self.accelerator.device))
        see(list(self.model.parameters()))
        self.holders.set_model(self.model)
        self._adapter_names = {name for name, p in self.model.named_parameters() if id(p) not in own}
        self._find_adapters(self.model)

    def _find_adapters(self, model: nn.Module) -> None:
        self.adapters = {id(p) for name, p in model.named_parameters() if name in self._adapter_names}
        self.holders.set_adapters(self.adapters)

    # probe

    def probe_forward(self, result: Record) -> None:
        self.reporter.enter("probe")
        largest = max(self.validation, key=lambda batch: batch.padded).to(self.accelerator.device)
        self._probe(result, lambda live: probe.forward(self.model, largest, self.accelerator, live, self.objective))

    def probe_training(self, result: Record) -> None:
        self.reporter.enter("probe")
        train = self.settings.train
        self.steps = batching.pieces(self.inputs.steps, self.batch_size, train)
        self.make_optimizer = instantiate(self.settings.method.optim, _convert_="all")
        if train.gradient_checkpointing:
            self._training_only.callback(gradient_checkpointing.enable(self.model))
        if train.activation_offload:
            self._training_only.callback(activation_offload.enable(self.model))
        if self.rank is not None:
            # An optimizer may leave some weights as they are, and DDP would wait for their gradients.
            self.make_optimizer(self.model)
        self.model = self.accelerator.prepare_model(self.model)
        self._find_adapters(self.accelerator.unwrap_model(self.model))  # sharding replaces parameters
        largest = max(self.steps, key=lambda step: max(map(self.layout.tokens, step)))
        micro = [self.objective.batch(self.layout, drawn).to(self.accelerator.device) for drawn in largest]
        measure = partial(
            probe.steps,
            *(self.model, self.adapters, self._optimizer, micro, train.max_grad_norm, self.accelerator),
            busy=not train.compile,  # the probe's model is not compiled, so its kernels are others
            objective=self.objective,
        )
        self._probe(result, measure)
        # An optimizer may leave some weights as they are.
        result.parameters.trainable = structure.count(self.model, trainable=True)

    def _optimizer(self, model: nn.Module) -> Optimizer:
        optimizer = self.make_optimizer(model)
        optimizers.set_betas(optimizer, self.settings.train.betas)
        self.holders.set_optimizer(optimizer)
        return optimizer

    def _probe(self, result: Record, measure: Callable[[LiveBytes], Probe]) -> None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self._matmul_peak = matmul_peak(self.accelerator.device, dtype)
        live = LiveBytes(self.accelerator.device)
        # Random numbers are drawn from a copy: training begins as if the probe had not been.
        with self.meter.window("probe", counter=live) as memory, torch.random.fork_rng():
            result.probe = measure(live)
        if memory.allocated_peak is None:
            memory.allocated_peak = live.peak

    # train

    def train(self, result: Record) -> None:
        self.reporter.enter("train")
        train = self.settings.train
        optimizer = self._optimizer(self.accelerator.unwrap_model(self.model))
        optimizer = self.accelerator.prepare_optimizer(optimizer)
        if train.compile:
            self._training_only.callback(compiled.enable(self.model))
        self._halving = halving.CellHalving.of(self.request, self.steps, self.meter)
        with self.meter.window("train"), self._gpu:
            result.train, result.validation = loop.train(
                self.model,
                optimizer,
                self._batches(),
                replace(train, max_steps=len(self.steps)),  # fewer where max_tokens ends them
                self.accelerator,
                self._validate,
                self.reporter.end_step,
                self._checkpoints(),
                self._guess,
                self.objective,
                self._halving,
            )
        del optimizer
        self._gpus = self._gpu.states()
        self._training_only.close()
        self.model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        # Only training needs the optimizer's state and, with DDP, the buckets of gradients.
        self.accelerator.free_memory()  # accelerate keeps all that it prepared
        gc.collect()  # a schedule's patch makes an optimizer refer to itself

    def _batches(self) -> Iterator[list[batching.Batch]]:
        """The micro-batches of one step after another. A step begins when its batches are asked for."""
        for number, step in enumerate(self.steps, start=1):
            self.reporter.begin_step(number)
            yield [self.objective.batch(self.layout, drawn) for drawn in step]

    def _validate(self) -> float:
        validation_loss = loop.answer_loss(self.model, self.validation, self.accelerator, self.objective)
        self.reporter.track({"validation/loss": validation_loss})
        return validation_loss

    def validate_untuned(self, result: Record) -> None:
        self.reporter.enter("validate")
        with self.meter.window("validate"):
            validation_loss = self._validate()
        if not math.isfinite(validation_loss):
            raise FloatingPointError(f"The validation loss of the untuned model is {validation_loss}.")
        result.validation = [record.ValidationPoint(0, 0, validation_loss)]

    def _checkpoints(self) -> Checkpoints | None:
        of = {"cell": self.cell.id, "batch_size": self.batch_size, "fingerprints": self.inputs.fingerprints}
        of |= {"precision": self._precision, "speedups": dict(self._speedups)}
        return Checkpoints.asked_for(self.request, of, self.meter, self.accelerator.device)

    # After training on several devices

    def go_on_alone(self, result: Record) -> bool:
        """Leave the other devices. Returns whether this one goes on, with the whole model and the figures of all."""
        weights = distributed.weights(self.model, self.accelerator, self.sharded)
        self._gpus = gather_object(self._gpus)
        result.probe, self._gpu_ids = distributed.combine(result.probe, self.meter.phases, self.accelerator.device)
        self.rank.leave()
        self.accelerator = self._accelerator()
        if self.rank.number > 0:
            return False
        if self.sharded:
            self.model = None  # before there is a whole one
            gc.collect()
            self._load("gather", self.accelerator.device)
            distributed.restore(self.model, weights)
            if self.layout.flat:
                attention.enable(self.model)
        return True

    def _accelerator(self) -> Accelerator:
        return Accelerator(mixed_precision="bf16" if self.bf16 else "no")

    # infer

    def infer(self, result: Record) -> None:
        if isinstance(self.model, PeftModel):
            self._time_decoding("infer", ["base", "unmerged"], result)
        elif not self.tuned:
            self._time_decoding("infer", ["base"], result)

    def _time_decoding(self, phase: str, forms: list[str], result: Record) -> None:
        asked = self.settings.infer
        if not asked.repeats:
            return
        self.reporter.enter(phase)
        with self.meter.window(phase), ExitStack() as undone:
            if self.bf16:  # as a model is served that computes in it
                undone.callback(linear_weights.cast(self.model, torch.bfloat16))
            timed = partial(inference_speed.measure, self.model, forms)
            result.inference |= timed(asked, self.accelerator, decoding.greedy)
            if asked.large_batch_size not in (None, asked.batch_size):
                batched = replace(asked, batch_size=asked.large_batch_size)
                result.batched_inference |= timed(batched, self.accelerator, decoding.greedy)

    # merge, save

    def merge_and_save(self, result: Record) -> None:
        """Fold the adapter, if there is one, into the model; save the form that was asked for, and time the result."""
        form = saved.form(self.request.save, self.model) if self.tuned else None
        if form == "adapter":
            self._save_weights(form, result)
        self.reporter.enter("merge")
        batch = self.layout.batch(self.inputs.held_out[:4])
        with self.meter.window("merge"):  # not live: to count tensors would slow what is timed
            adapter = disk_size.adapter(self.model)
            self.model, result.merge = adapter_merge.merge(self.model, batch, self.accelerator)
            self.holders.set_model(self.model)
            result.disk = Disk(adapter, disk_size.weights(self.model))
        if form in ("merged", "model"):
            self._save_weights("adapter" if isinstance(self.model, PeftModel) else form, result)
        if self.tuned and not isinstance(self.model, PeftModel):
            self._time_decoding("serve", ["merged"], result)

    def merge_expanded(self, result: Record) -> None:
        """Merge into a quantised base, expanded to the dtype that it was quantised from, where that fits."""
        try:
            self.merge_and_save(result)
        except Exception as error:
            if not shortage.of_memory(error):
                raise
            result.merge.reason += f" Dequantised, the model did not fit: {redact.reason(error)}"

    def _save_weights(self, form: saved.Form, result: Record) -> None:
        self.reporter.enter("save")
        with self.meter.window("save"):
            result.saved = saved.write(self.model, form, self.inputs.tokenizer, self.cell, self._weights)

    # score

    def score(self, result: Record) -> None:
        tasks, asked, tokenizer = self.inputs.tasks, self.settings.eval, self.inputs.tokenizer
        if not tasks.leaves:
            return  # eval.tasks=[]: a cell for its cost alone
        vllm = None
        if asked.engine == "vllm" and tasks.written:
            self.reporter.enter("save_for_vllm")
            with self.meter.window("save_for_vllm"):
                whole = self._weights if result.saved is not None and result.saved.form != "adapter" else None
                python, path = self.request.local.vllm_python, Path(self.request.path)
                vllm = vllm_engine.writer(python, self.cell, path, self.model, tokenizer, self.bf16, whole)
        self.reporter.enter("score")
        with self.meter.window("score"):  # not live: of each token it would be a third
            result.scores, self.items, used = scoring.score(
                self.model,
                tokenizer,
                tasks,
                asked.batch_size,
                torch.bfloat16 if self.bf16 else None,
                speedups=self.settings.fast,
                tell_batch=partial(self._loaded.__setitem__, "eval_batch_size"),
                answered_so_far=self.reporter.answered,
                vllm=vllm,
            )
        result.items, result.vllm = record.item_hashes(tasks.sample), vllm and vllm.usage
        self._speedups |= used

    # What the record says beside the phases

    @property
    def _precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    def describe(self, result: Record) -> None:
        result.phases = self.meter.phases
        result.gpus = self._gpus or self._gpu.states()  # the latter of a cell that failed in training
        result.environment |= device.describe(self.accelerator.device)
        result.environment["precision"] = self._precision
        result.environment["device"]["matmul_flops_per_second"] = self._matmul_peak
        if self._gpu_ids is not None:
            result.environment["device"]["id"] = self._gpu_ids
        result.environment |= self._loaded | {"speedups": self._speedups}

    def shortage(self) -> Shortage:
        return self.holders.shortage(self.meter)

    def end(self, result: Record) -> None:
        self.reporter.end(result)
