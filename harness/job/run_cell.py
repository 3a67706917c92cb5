"""Runs one cell from load to scores and leaves its record, whatever happens on the way."""

from __future__ import annotations

import gc
import math
import shutil
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from hydra.utils import instantiate
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer

from harness import env, record, redact
from harness.errors import UserError, about_file
from harness.job import prepared_inputs, shortage
from harness.job.api import run_api_cell
from harness.job.data import batching, chat, columns, encoding, sources
from harness.job.evaluate import decoding, linear_weights, scoring, vllm_engine
from harness.job.measure import device, disk_size, heap, inference_speed
from harness.job.measure.device_memory import in_use, largest_free
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.phases import Meter
from harness.job.measure.timing import matmul_peak
from harness.job.methods import optimizers
from harness.job.models import adapter_merge, adapting, checks, loading, saved, structure
from harness.job.tracker import Tracker
from harness.job.training import (
    activation_offload,
    attention,
    compiled,
    distributed,
    gradient_checkpointing,
    loop,
    loss,
    probe,
)
from harness.job.training.checkpoints import Checkpoints, code
from harness.record import (
    Cell,
    Disk,
    Failure,
    Merge,
    Parameters,
    Precautions,
    Probe,
    Record,
    Shortage,
    SmallerBatches,
    behind_api,
    device_count,
    model_card,
)

Report = Callable[[dict], None]


def check(cells: list[Cell], data_root: str | None) -> None:
    """Raise UserError if the model, the data or a task of a cell can't be had, or its rank can't be."""
    tasks, splits = [], []  # looked at already: a grid's cells mostly share them, and to load them takes seconds
    for cell in cells:
        if behind_api(cell):
            run_api_cell.check(cell, data_root)
            continue
        _check_here(cell)
        if cell.settings["eval"].get("chat_template"):
            scoring.check_template(cell.settings["eval"], loading.tokenizer(cell.settings["model"]))
        if cell.settings["eval"] not in tasks:
            scoring.Tasks(cell.settings["eval"], data_root)
            tasks.append(cell.settings["eval"])
        if cell.settings["data"] not in splits:
            found = sources.splits(cell.settings["data"], data_root)
            if any(columns.CHAT in item for item in found["train"][:1]):
                chat.require(loading.tokenizer(cell.settings["model"]))
            splits.append(cell.settings["data"])


def _check_here(cell: Cell) -> None:
    """Raise UserError if the model can't be had, or a setting can't be on this machine."""
    device.check_formats(cell.settings)
    checks.check(cell)
    compiled.check(cell.settings)
    activation_offload.check(cell.settings)
    vllm_engine.check(cell.settings)


def run(
    cell: Cell,
    study: str,
    path: Path,
    data_root: str | None,
    report: Report,
    checkpoints: Path | None = None,
    precautions: Precautions | None = None,
    smaller: SmallerBatches | None = None,
    save: str = "none",
    tracker: str | None = None,
    rank: distributed.Rank | None = None,
    asking: run_api_cell.Asking | None = None,
) -> Record:
    """Run `cell`, write its record to `path` (its items beside it), and return it.

    report is told phases, and steps of training. Bad input raises UserError and leaves no record; any other failure
    is recorded with its phase, step and reason. A record that can't be written raises UserError too.

    checkpoints: the folder of the cell's own; they are made, and gone on from, if the precautions say how often.
        With the record they go, but for that of a failed cell: it may be tried again.
    smaller: micro-batches to take in place of those that were asked for.
    save, tracker: as in harness.config.Config. Weights are saved of a tuned cell that ends as ok.
    asking: how the model is asked, if it is behind an API.
    rank: this process's part in a cell on several devices, one of which leaves the record.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    report({"phase": "start"})
    precautions = precautions or Precautions()
    unplaced, _ = left = record.beginnings(path)
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    if behind_api(cell):
        job = run_api_cell.Job(cell, asking, data_root, report)
    else:
        _check_here(cell)
        job = _Job(cell, data_root, report, checkpoints, precautions.save_every, smaller, (save, unplaced), rank)
        if tracker is not None and (rank is None or rank.number == 0):
            job.tracker = Tracker(tracker, cell, study, path.parent)
    result = Record(
        cell=cell, study=study, status="ok", started=started.isoformat(timespec="seconds"), seconds=0.0, environment={}
    )
    result.precautions, result.smaller_batches, result.save, result.tracker = precautions, smaller, save, tracker
    try:
        job.run(result)
    except loop.Diverged as error:
        result.status, result.failure = "diverged", Failure(job.phase, error.step, str(error))
    except run_api_cell.Stopped as error:
        result.status, result.failure = "failed", Failure(job.phase, job.step, str(error))
    except UserError:
        shutil.rmtree(unplaced, ignore_errors=True)
        raise
    except Exception as error:
        print(redact.redact(traceback.format_exc()), file=sys.stderr)  # into the cell's log
        oom = shortage.of_memory(error)
        result.status = "oom" if oom else "failed"
        result.failure = Failure(job.phase, job.step, _reason(error), job.shortage() if oom else None)
    if rank is not None and not rank.records(result.status):
        return result
    result.seconds = time.monotonic() - clock
    result.environment = env.describe()
    job.describe(result)
    if result.status != "ok":
        result.saved = None
    try:
        if job.items is not None:
            result.items_sha256 = _write_items(job.items, path.with_suffix(".items.parquet"))
        if result.saved is None:
            shutil.rmtree(record.model_folder(path), ignore_errors=True)  # of no record, if there is one
        else:
            (unplaced / record.CARD).write_text(model_card.text(result), encoding="utf-8")
            record.place(unplaced, record.model_folder(path))
        record.write(result, path)
    except OSError as error:
        raise UserError(about_file(error)) from None
    finally:
        shutil.rmtree(unplaced, ignore_errors=True)
    if job.tracker is not None:
        job.tracker.end(result)
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
        save: tuple[str, Path],
        rank: distributed.Rank | None,
    ):
        self.cell, self.settings, self.rank = cell, cell.settings, rank
        self.phase, self.step = "start", None
        self._report, self._saves, self._save_as = report, (checkpoints, save_every), save
        self.tracker: Tracker | None = None
        self.ready = prepared_inputs.of(self.settings, data_root)
        checks.check_length(self.settings["model"], self.ready.longest)
        asked = smaller.batch_size if smaller else record.micro_batch(self.settings["train"])
        self.batch_size = asked // device_count(self.settings)  # of one device
        self.bf16 = device.compute_dtype(self.settings["train"]["precision"]) is torch.bfloat16
        self.sharded = rank is not None and self.settings["train"]["parallel"] == "fsdp"
        self.accelerator = self._accelerator() if rank is None else rank.accelerator(self.sharded, self.bf16)
        self.meter = Meter(self.accelerator.device)
        self.matmul_peak: float | None = None
        self.loaded: dict[str, Any] = {}  # what a record's environment says of the model
        self.speedups: dict[str, str] = {}  # by name: "on", or why not
        self.gpus: str | None = None  # ids of those that trained together
        self.items: pd.DataFrame | None = None  # what was scored, item by item
        # What may hold memory when it runs out. Weak, so that nothing lives longer for it.
        self._net: weakref.ref[nn.Module] | None = None
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._added: set[int] = set()  # ids of the parameters that are adapters
        self._of_training = ExitStack()  # takes off the model what it has for training alone

    def run(self, result: Record) -> None:
        cell, train_settings = self.cell, self.settings["train"]
        set_seed(cell.seed or 0)
        result.fingerprints, result.contamination = self.ready.fingerprints, self.ready.contamination

        # A model that is to be sharded may be too large for one device.
        net, added = self._load("load", torch.device("cpu") if self.sharded else self.accelerator.device)
        result.parameters = Parameters(structure.count(net), structure.count(net, trainable=True))
        if cell.settings["method"]["optim"] is None:
            result.parameters.trainable = 0

        pad = self.ready.tokenizer.pad_token_id
        layout, self.speedups = attention.layout(net, self.settings["speedups"], pad)
        if layout.flat:
            attention.enable(net)
        self.loaded["attention"] = structure.inner(net).config._attn_implementation
        if self.settings["speedups"] == "off":
            self.speedups |= dict.fromkeys(("fused_loss", "kept_memory"), attention.OFF)
        else:
            with self.accelerator.autocast():
                self.speedups["fused_loss"] = loss.enable(net)
            self.speedups["kept_memory"] = heap.keep(self.accelerator.device.type)
        held_out, size = self.ready.held_out, self.batch_size
        validation = [layout.batch(held_out[i : i + size]) for i in range(0, len(held_out), size)]

        def validate() -> float:
            found = loop.answer_loss(net, validation, self.accelerator)
            self._track({"validation/loss": found})
            return found

        if cell.settings["method"]["optim"] is None:
            self._enter("probe")
            largest = max(validation, key=lambda batch: batch.padded).to(self.accelerator.device)
            self._probe(result, lambda live: probe.forward(net, largest, self.accelerator, live))
            self._enter("validate")
            with self.meter.window("validate"):
                found = validate()
            if not math.isfinite(found):
                raise FloatingPointError(f"The validation loss of the untuned model is {found}.")
            result.validation = [record.ValidationPoint(0, 0, found)]
        else:
            self._enter("probe")
            steps = batching.pieces(self.ready.steps, size, train_settings)
            make = instantiate(self.settings["method"]["optim"], _convert_="all")

            def build(net: nn.Module) -> Optimizer:
                optimizer = make(net)
                self._optimizer = weakref.ref(optimizer)
                return optimizer

            if train_settings.get("gradient_checkpointing"):
                self._of_training.callback(gradient_checkpointing.enable(net))
            if train_settings.get("activation_offload"):
                self._of_training.callback(activation_offload.enable(net))
            if self.rank is not None:
                make(net)  # an optimizer may leave some weights as they are, and DDP would wait for their gradients
            net = self.accelerator.prepare_model(net)
            self._added = {id(p) for name, p in self.accelerator.unwrap_model(net).named_parameters() if name in added}
            largest = max(steps, key=lambda step: max(map(layout.tokens, step)))
            micro = [layout.batch(examples).to(self.accelerator.device) for examples in largest]
            norm = train_settings["max_grad_norm"]
            self._probe(result, lambda live: probe.steps(net, self._added, build, micro, norm, self.accelerator, live))
            result.parameters.trainable = structure.count(
                net, trainable=True
            )  # an optimizer may leave some as they are
            del micro

            self._enter("train")
            optimizer = self.accelerator.prepare_optimizer(build(self.accelerator.unwrap_model(net)))
            if compiles := train_settings.get("compile"):
                self._of_training.callback(compiled.enable(net))
            with self.meter.window("train"):
                result.train, result.validation = loop.train(
                    net,
                    optimizer,
                    self._batches(steps, layout),
                    train_settings | {"max_steps": len(steps)},  # fewer where max_tokens ends them
                    self.accelerator,
                    validate,
                    self._stepped,
                    self._checkpoints(),
                    compiled.seconds if compiles else None,
                )
            del optimizer
            self._of_training.close()
            net = self.accelerator.unwrap_model(net, keep_fp32_wrapper=False)
            self._free_training()
            if self.rank is not None:
                weights = self._leave(net, result)
                if self.rank.number > 0:
                    return
                if self.sharded:
                    del net  # before there is a whole one
                    net = self._whole(weights, layout)

        batch = layout.batch(held_out[:4])
        if isinstance(net, PeftModel):
            self._infer("infer", net, ["base", "unmerged"], result)
        elif result.train is None:
            self._infer("infer", net, ["base"], result)
        if not adapter_merge.quantised(net):
            net = self._merge(net, batch, result)
            self._score(net, result)
            return
        result.merge = Merge(False, adapter_merge.rounding(net))
        self._score(net, result)
        try:
            self._merge(net, batch, result)
        except Exception as error:
            if not shortage.of_memory(error):
                raise
            result.merge.reason += f" Dequantised, the model did not fit: {_reason(error)}"

    def describe(self, result: Record) -> None:
        """Add to `result` its phases, and where it ran beside what is known of the machine anyway."""
        result.phases = self.meter.phases
        result.environment |= device.describe(self.accelerator.device)
        result.environment["precision"] = "bf16" if self.bf16 else "fp32"
        result.environment["device"]["matmul_flops_per_second"] = self.matmul_peak
        if self.gpus is not None:
            result.environment["device"]["id"] = self.gpus
        result.environment |= self.loaded | {"speedups": self.speedups}

    def _samples(self, size: int) -> Iterator[batching.Batch]:
        """Training examples in their order, padded, `size` a batch."""
        layout = batching.Layout(flat=False, pad=self.ready.tokenizer.pad_token_id)
        examples = [example for step in self.ready.steps for micro in step for example in micro]
        for i in range(0, len(examples), size):
            yield layout.batch(examples[i : i + size]).to(self.accelerator.device)

    def _accelerator(self) -> Accelerator:
        return Accelerator(mixed_precision="bf16" if self.bf16 else "no")

    def _load(self, phase: str, on: torch.device) -> tuple[nn.Module, set[str]]:
        """The model on the device `on`, and the names of its adapters' parameters."""
        self._enter(phase)
        with self.meter.window(phase) as memory, self.meter.live(memory) as see:
            base = loading.load(self.cell, on)
            self.loaded = structure.describe(base)
            own = {id(p) for p in base.parameters()}
            net = adapting.adapt(base, self.cell, self._samples)
            see(list(net.parameters()))  # mapped from the file, not the result of any operation
        self._net, self._added = weakref.ref(net), {id(p) for p in net.parameters()} - own
        return net, {name for name, p in net.named_parameters() if id(p) in self._added}

    def _free_training(self) -> None:
        """Free what only training needs: the optimizer's state and, with DDP, the buckets of gradients."""
        self.accelerator.free_memory()  # accelerate keeps all that it prepared
        gc.collect()  # a schedule's patch makes an optimizer refer to itself

    def _leave(self, net: nn.Module, result: Record) -> dict[str, torch.Tensor]:
        """End what ranks do together; in the first `result` tells of them all then.

        Returns its weights by name, where each rank has a share of them.
        """
        if not self.sharded and not distributed.same(net):
            raise RuntimeError("The devices' weights differ: the optimizer took another step on each.")
        weights = distributed.whole(net, self.accelerator) if self.sharded else {}
        told = gather_object([(result.probe, self.meter.phases, device.describe(self.accelerator.device)["device"])])
        probes, phases, on = zip(*told, strict=True)
        result.probe, self.meter.phases = distributed.fullest(probes), distributed.largest(phases)
        if on[0]["id"] is not None:
            self.gpus = "+".join(each["id"] for each in on)
        self.rank.leave()
        self.accelerator = self._accelerator()
        return weights

    def _whole(self, weights: dict[str, torch.Tensor], layout: batching.Layout) -> nn.Module:
        """The model on one device, with the `weights` that the ranks had, which are used up."""
        gc.collect()
        net, _ = self._load("gather", self.accelerator.device)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(weights.pop(name))
        if layout.flat:
            attention.enable(net)
        return net

    def _batches(
        self, steps: list[list[list[encoding.Example]]], layout: batching.Layout
    ) -> Iterator[list[batching.Batch]]:
        """The micro-batches of one step after another; the step is the job's from when they are asked for."""
        for number, step in enumerate(steps, start=1):
            self.step = number
            yield [layout.batch(examples) for examples in step]

    def _checkpoints(self) -> Checkpoints | None:
        folder, every = self._saves
        if folder is None or every is None:
            return None
        here = [env.describe() | device.describe(self.accelerator.device)]
        broadcast_object_list(here)  # the first device's, which makes them
        of = {name: here[0][name] for name in ("versions", "cpu", "device", "threads")}
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
            held.see(optimizers.state(optimizer), "optimizer")
        counter = self.meter.counter
        allocated = torch.cuda.memory_allocated(on) if on.type == "cuda" else counter and counter.now
        kinds = held.now_by_kind
        rest = None if allocated is None else allocated - held.now
        return Shortage(
            kinds.weights, kinds.adapters, kinds.gradients, kinds.optimizer, rest, allocated, largest_free(on)
        )

    def _merge(self, net: nn.Module, batch: batching.Batch, result: Record) -> nn.Module:
        """The model with its adapter folded in, if it has one; its size and, if it was tuned, its speed are taken.

        On the way it is saved, if that was asked for.
        """
        form = saved.form(self._save_as[0], net) if result.train is not None else None
        if form == "adapter":
            self._save(net, form, result)
        self._enter("merge")
        with self.meter.window("merge"):  # not live: to count tensors would slow what is timed
            adapter = disk_size.adapter(net)
            net, result.merge = adapter_merge.merge(net, batch, self.accelerator)
            self._net = weakref.ref(net)
            result.disk = Disk(adapter, disk_size.weights(net))
        if form in ("merged", "model"):
            self._save(net, "adapter" if isinstance(net, PeftModel) else form, result)
        if result.train is not None and not isinstance(net, PeftModel):
            self._infer("serve", net, ["merged"], result)
        return net

    def _save(self, net: nn.Module, form: saved.Form, result: Record) -> None:
        self._enter("save")
        with self.meter.window("save"):
            result.saved = saved.write(net, form, self.ready.tokenizer, self.cell, self._save_as[1])

    def _infer(self, phase: str, net: nn.Module, forms: list[str], result: Record) -> None:
        if self.settings["infer"]["repeats"]:
            self._enter(phase)
            with self.meter.window(phase), ExitStack() as undone:
                if self.bf16:  # as a model is served that computes in it
                    undone.callback(linear_weights.cast(net, torch.bfloat16))
                asked, accelerator = self.settings["infer"], self.accelerator
                result.inference |= inference_speed.measure(net, forms, asked, accelerator, decoding.greedy)

    def _score(self, net: nn.Module, result: Record) -> None:
        tasks = self.ready.tasks
        if not tasks.leaves:
            return  # eval.tasks=[]: a cell for its cost alone
        self._enter("score")
        result.items = tasks.sample
        asked, autocast = self.settings["eval"], torch.bfloat16 if self.bf16 else None
        with self.meter.window("score"):  # not live: of each token it would be a third
            result.scores, self.items = scoring.score(
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
        told = {f"train/{name}": event[name] for name in ("loss", "lr", "grad_norm", "tokens_per_second")}
        self._track(told | {"train/memory_bytes": live["memory_bytes"]})

    def _track(self, values: dict[str, float | None]) -> None:
        """Tell the tracker, if there is one, outside of what the phase is measured by."""
        if self.tracker is not None:
            with self.meter.aside():
                self.tracker.log(values, self.step or 0)


def _write_items(items: pd.DataFrame, path: Path) -> str:
    """Write the items to `path`, all or nothing; their file's hash."""
    with record.replacing(path) as temporary:
        items.to_parquet(temporary, index=False)
    return record.sha256(path)


def _reason(error: Exception) -> str:
    """The first line that an exception says of itself, with its kind; neither secrets nor places on this machine."""
    lines = redact.clean(str(error)).strip().splitlines()
    return ": ".join([type(error).__name__, *(" ".join(line.split()) for line in lines[:1])])
