"""Runs one cell from load to scores and leaves its record, whatever happens on the way."""

from __future__ import annotations

import math
import shutil
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from hydra.utils import instantiate
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer

from harness import env, private, record
from harness.errors import UserError, about_file
from harness.job import (
    attention,
    data,
    device,
    disk,
    fused,
    infer,
    merge,
    model,
    optim,
    probe,
    ready,
    score,
    train,
    vllm_engine,
)
from harness.job.checkpoint import Checkpoints, code
from harness.job.meter import LiveBytes, Meter, in_use, largest_free, matmul_peak
from harness.record import Cell, Disk, Failure, Merge, Parameters, Precautions, Probe, Record, Shortage, SmallerBatches

Report = Callable[[dict], None]


def check(cells: list[Cell], data_root: str | None) -> None:
    """Raise UserError if the model, the data or a task of a cell can't be had, or its rank can't be."""
    tasks, splits = [], []  # looked at already: a grid's cells mostly share them, and to load them takes seconds
    for cell in cells:
        model.check(cell)
        vllm_engine.check(cell.settings)
        if cell.settings["eval"] not in tasks:
            score.Tasks(cell.settings["eval"], data_root)
            tasks.append(cell.settings["eval"])
        if cell.settings["data"] not in splits:
            data.splits(cell.settings["data"], data_root)
            splits.append(cell.settings["data"])


def run(
    cell: Cell,
    study: str,
    path: Path,
    data_root: str | None,
    report: Report,
    checkpoints: Path | None = None,
    precautions: Precautions | None = None,
    smaller: SmallerBatches | None = None,
) -> Record:
    """Run `cell`, write its record to `path` (its items beside it), and return it.

    report is told phases, and steps of training. Bad input raises UserError and leaves no record; any other failure
    is recorded with its phase, step and reason. A record that can't be written raises UserError too.

    checkpoints: the folder of the cell's own; they are made, and gone on from, if the precautions say how often.
        With the record they go, but for that of a failed cell: it may be tried again.
    smaller: micro-batches to take in place of those that were asked for.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    report({"phase": "start"})
    model.check(cell)
    vllm_engine.check(cell.settings)
    precautions = precautions or Precautions()
    job = _Job(cell, data_root, report, checkpoints, precautions.save_every, smaller)
    result = Record(
        cell=cell, study=study, status="ok", started=started.isoformat(timespec="seconds"), seconds=0.0, environment={}
    )
    result.precautions, result.smaller_batches = precautions, smaller
    try:
        job.run(result)
    except train.Diverged as error:
        result.status, result.failure = "diverged", Failure(job.phase, error.step, str(error))
    except UserError:
        raise
    except Exception as error:
        print(private.redact(traceback.format_exc()), file=sys.stderr)  # into the cell's log
        oom = _out_of_memory(error)
        result.status = "oom" if oom else "failed"
        result.failure = Failure(job.phase, job.step, _reason(error), job.shortage() if oom else None)
    result.phases = job.meter.phases
    result.seconds = time.monotonic() - clock
    result.environment = env.describe() | device.describe(job.accelerator.device)
    result.environment["precision"] = "bf16" if job.bf16 else "fp32"
    result.environment["device"]["matmul_flops_per_second"] = job.matmul_peak
    result.environment |= job.loaded | {"speedups": job.speedups}
    try:
        if job.items is not None:
            result.items_sha256 = _write_items(job.items, path.with_suffix(".items.parquet"))
        record.write(result, path)
    except OSError as error:
        raise UserError(about_file(error)) from None
    if checkpoints is not None and result.status != "failed":
        shutil.rmtree(checkpoints, ignore_errors=True)
    report({"phase": "recorded"})
    return result


class _Job:
    """The state of a running cell: what is loaded so far and where it stands."""

    def __init__(
        self,
        cell: Cell,
        data_root: str | None,
        report: Report,
        checkpoints: Path | None,
        save_every: int | None,
        smaller: SmallerBatches | None,
    ):
        self.cell, self.settings = cell, cell.settings
        self.phase, self.step = "start", None
        self._report, self._saves = report, (checkpoints, save_every)
        self.ready = ready.of(self.settings, data_root)
        self.batch_size = smaller.batch_size if smaller else self.settings["train"]["batch_size"]
        self.bf16 = device.compute_dtype(self.settings["train"]["precision"]) is torch.bfloat16
        self.accelerator = Accelerator(mixed_precision="bf16" if self.bf16 else "no")
        self.meter = Meter(self.accelerator.device)
        self.matmul_peak: float | None = None
        self.loaded: dict[str, Any] = {}  # what a record's environment says of the model
        self.speedups: dict[str, str] = {}  # by name: "on", or why not
        self.items: pd.DataFrame | None = None  # what was scored, item by item
        # What may hold memory when it runs out. Weak, so that nothing lives longer for it.
        self._net: weakref.ref[nn.Module] | None = None
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._added: set[int] = set()  # ids of the parameters that are adapters

    def run(self, result: Record) -> None:
        cell, train_settings = self.cell, self.settings["train"]
        set_seed(cell.seed or 0)
        result.fingerprints = self.ready.fingerprints

        self._enter("load")
        with self.meter.window("load") as memory, self.meter.live(memory) as see:
            base = model.load(cell, self.accelerator.device)
            self.loaded = model.describe(base)
            own = {id(p) for p in base.parameters()}
            net = model.adapt(base, cell)
            see(list(net.parameters()))  # mapped from the file, not the result of any operation
        self._net, self._added = weakref.ref(net), {id(p) for p in net.parameters()} - own
        result.parameters = Parameters(model.count(net), model.count(net, trainable=True))
        if cell.settings["method"]["optim"] is None:
            result.parameters.trainable = 0

        pad = self.ready.tokenizer.pad_token_id
        layout, self.speedups = attention.layout(net, self.settings["speedups"], pad)
        if layout.flat:
            attention.enable(net)
        self.speedups["fused_loss"] = attention.OFF if self.settings["speedups"] == "off" else fused.enable(net)
        held_out, size = self.ready.held_out, self.batch_size
        validation = [layout.batch(held_out[i : i + size]) for i in range(0, len(held_out), size)]

        def validate() -> float:
            return train.answer_loss(net, validation, self.accelerator)

        if cell.settings["method"]["optim"] is None:
            self._enter("probe")
            largest = max(validation, key=lambda batch: batch.padded).to(self.accelerator.device)
            self._probe(result, lambda live: probe.forward(net, largest, self.accelerator, live))
            self._enter("validate")
            with self.meter.window("validate"):
                loss = validate()
            if not math.isfinite(loss):
                raise FloatingPointError(f"The validation loss of the untuned model is {loss}.")
            result.validation = [record.ValidationPoint(0, 0, loss)]
        else:
            self._enter("probe")
            steps = [data.cut(step, size) for step in self.ready.steps]
            make = instantiate(self.settings["method"]["optim"], _convert_="all")

            def build(net: nn.Module) -> Optimizer:
                optimizer = make(net)
                self._optimizer = weakref.ref(optimizer)
                return optimizer

            net = self.accelerator.prepare(net)
            largest = max(steps, key=lambda step: max(map(layout.tokens, step)))
            micro = [layout.batch(examples).to(self.accelerator.device) for examples in largest]
            norm = train_settings["max_grad_norm"]
            self._probe(result, lambda live: probe.steps(net, self._added, build, micro, norm, self.accelerator, live))
            del micro

            self._enter("train")
            optimizer = self.accelerator.prepare(build(net))
            with self.meter.window("train"):
                result.train, result.validation = train.train(
                    net,
                    optimizer,
                    self._batches(steps, layout),
                    train_settings,
                    self.accelerator,
                    validate,
                    self._stepped,
                    self._checkpoints(),
                )
            del optimizer
            net = self.accelerator.unwrap_model(net, keep_fp32_wrapper=False)

        batch = layout.batch(held_out[:4])
        if isinstance(net, PeftModel):
            self._infer("infer", net, ["base", "unmerged"], result)
        elif result.train is None:
            self._infer("infer", net, ["base"], result)
        if not merge.quantised(net):
            net = self._merge(net, batch, result)
            self._score(net, result)
            return
        result.merge = Merge(False, merge.QUANTISED)
        self._score(net, result)
        try:
            self._merge(net, batch, result)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            result.merge.reason += f" Dequantised, the model did not fit: {_reason(error)}"

    def _batches(self, steps: list[list[list[data.Example]]], layout: data.Layout) -> Iterator[list[data.Batch]]:
        """The micro-batches of one step after another; the step is the job's from when they are asked for."""
        for number, step in enumerate(steps, start=1):
            self.step = number
            yield [layout.batch(examples) for examples in step]

    def _checkpoints(self) -> Checkpoints | None:
        folder, every = self._saves
        if folder is None or every is None:
            return None
        here = env.describe() | device.describe(self.accelerator.device)
        of = {name: here[name] for name in ("versions", "cpu", "device", "threads")}
        of |= {"cell": self.cell.id, "batch_size": self.batch_size, "fingerprints": self.ready.fingerprints}
        of |= {"precision": "bf16" if self.bf16 else "fp32", "speedups": dict(self.speedups), "harness": code()}
        return Checkpoints(folder, every, of, self.meter)

    def shortage(self) -> Shortage:
        """What the device holds; to be asked while the exception still holds what it ran out of memory with."""
        on, held = self.accelerator.device, LiveBytes(self.accelerator.device)
        net, optimizer = (ref and ref() for ref in (self._net, self._optimizer))
        if net is not None:
            probe.see_weights(net, self._added, held)
            held.see([p.grad for p in net.parameters()], "gradients")
        if optimizer is not None:
            held.see(optim.state(optimizer), "optimizer")
        counter = self.meter.counter
        allocated = torch.cuda.memory_allocated(on) if on.type == "cuda" else counter and counter.now
        kinds = held.now_by_kind
        rest = None if allocated is None else allocated - held.now
        return Shortage(
            kinds.weights, kinds.adapters, kinds.gradients, kinds.optimizer, rest, allocated, largest_free(on)
        )

    def _merge(self, net: nn.Module, batch: data.Batch, result: Record) -> nn.Module:
        """The model with its adapter folded in, if it has one; its size and, if it was tuned, its speed are taken."""
        self._enter("merge")
        with self.meter.window("merge"):  # not live: to count tensors would slow what is timed
            adapter = disk.adapter(net)
            net, result.merge = merge.merge(net, batch, self.accelerator)
            self._net = weakref.ref(net)
            result.disk = Disk(adapter, disk.weights(net))
        if result.train is not None:
            self._infer("serve", net, ["merged"], result)
        return net

    def _infer(self, phase: str, net: nn.Module, forms: list[str], result: Record) -> None:
        if self.settings["infer"]["repeats"]:
            self._enter(phase)
            with self.meter.window(phase):
                result.inference |= infer.measure(net, forms, self.settings["infer"], self.accelerator)

    def _score(self, net: nn.Module, result: Record) -> None:
        tasks = self.ready.tasks
        if not tasks.leaves:
            return  # eval.tasks=[]: a cell for its cost alone
        self._enter("score")
        result.items = tasks.sample
        asked, autocast = self.settings["eval"], torch.bfloat16 if self.bf16 else None
        with self.meter.window("score") as memory, self.meter.live(memory) as see:
            see([*net.parameters(), *net.buffers()])
            result.scores, self.items = score.score(
                net,
                self.ready.tokenizer,
                tasks,
                asked["batch_size"],
                autocast,
                speedups=self.settings["speedups"] != "off",
                engine=asked.get("engine", "auto"),
            )
        self.speedups |= self.items.attrs["speedups"]

    def _probe(self, result: Record, take: Callable[[LiveBytes], Probe]) -> None:
        self.matmul_peak = matmul_peak(self.accelerator.device, torch.bfloat16 if self.bf16 else torch.float32)
        live = LiveBytes(self.accelerator.device)
        # Random numbers are drawn from a copy: training begins as if the probe had not been.
        with self.meter.window("probe") as memory, torch.random.fork_rng():
            self.meter.counter = live
            result.probe = take(live)
        if memory.allocated_peak is None:
            memory.allocated_peak = live.peak

    def _enter(self, phase: str) -> None:
        self.phase, self.step = phase, None
        self._entered, self._taken = time.monotonic(), 0
        self._report({"phase": phase})

    def _stepped(self, event: dict) -> None:
        self.step = event["step"]
        self._taken += 1  # by this process
        pace = (time.monotonic() - self._entered) / self._taken
        live = {"memory_bytes": in_use(self.meter.device), "seconds_left": pace * (event["of"] - event["step"])}
        self._report({"phase": self.phase} | event | live)


def _write_items(items: pd.DataFrame, path: Path) -> str:
    """Write the items to `path`, all or nothing; their file's hash."""
    with record.replacing(path) as temporary:
        items.to_parquet(temporary, index=False)
    return record.sha256(path)


def _out_of_memory(error: Exception) -> bool:
    cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _reason(error: Exception) -> str:
    """The first line that an exception says of itself, with its kind; neither secrets nor places on this machine."""
    lines = private.clean(str(error)).strip().splitlines()
    return ": ".join([type(error).__name__, *(" ".join(line.split()) for line in lines[:1])])
