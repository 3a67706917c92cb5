"""Measurements in a process of their own, outside the harness's cells: python -m benchmarks.gpu.beside NAME.

NAME is one of ANSWERS. Its keyword arguments are read as JSON from standard input; its result is printed to standard
output as one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from hydra.utils import instantiate
from torch.profiler import ProfilerActivity, profile

from harness.job import prepared_inputs, speedups
from harness.job.data import batching
from harness.job.evaluate import scoring
from harness.job.measure import device, timing
from harness.job.measure.busy import covered
from harness.job.models import adapting, loading
from harness.job.training import loop
from harness.record import Cell, decode

sys.path.append(str(Path(__file__).resolve().parents[1]))
import plain


class Training:
    """A cell's model, optimizer and steps, as in its job when training begins."""

    def __init__(self, cell: Cell):
        settings = cell.settings
        self.inputs = prepared_inputs.inputs_of(settings, None)
        self.norm = settings.train.max_grad_norm
        bf16 = device.compute_dtype(settings.train.validated().precision) is torch.bfloat16
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
        set_seed(cell.seed or 0)
        net = adapting.adapt(loading.load(cell, self.accelerator.device), cell, self._samples)
        pad = self.inputs.tokenizer.pad_token_id
        self.layout, _ = speedups.enable(net, settings.speedups or "off", pad, self.accelerator)
        optimizer = instantiate(settings.method.optim, _convert_="all")(net)
        self.net, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.net.train()

    def _samples(self, size: int) -> Iterator[batching.Batch]:
        padded = batching.Layout(flat=False, pad=self.inputs.tokenizer.pad_token_id)
        examples = [example for step in self.inputs.steps for micro in step for example in micro]
        for i in range(0, len(examples), size):
            yield padded.batch(examples[i : i + size]).to(self.accelerator.device)

    def step(self, number: int) -> None:
        micro = [self.layout.batch(examples).to(self.accelerator.device) for examples in self.inputs.steps[number]]
        loop.take_step(self.net, self.optimizer, micro, self.norm, self.accelerator, lambda part: None)


def busy(cell: dict[str, Any]) -> dict[str, Any]:
    """Of two steps: wall time in seconds without the profiler, seconds in which kernels run, and kernels per step."""
    training = Training(decode(Cell, cell))
    *before, last_but_one, last = range(len(training.inputs.steps))
    for number in before:  # warm-up: chooses kernels and creates the optimizer's state
        training.step(number)
    timing.synchronize()
    start = timing.clock()
    training.step(last_but_one)
    training.step(last)
    timing.synchronize()
    wall = timing.clock() - start
    on_cuda = training.accelerator.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as trace:
        training.step(last_but_one)
        training.step(last)
        timing.synchronize()
    kind = torch.autograd.DeviceType.CUDA if on_cuda else torch.autograd.DeviceType.CPU
    kernels = [e for e in trace.events() if e.device_type == kind and not e.is_user_annotation]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    return {"wall": wall, "kernels": len(kernels) / 2, "seconds": covered(spans) / 1e6}


def engine(cell: dict[str, Any], autocast: str | None = None) -> dict[str, Any]:
    """Seconds taken by lm-eval's own class and by ours, and the number of answers, and of equal ones.

    autocast: what products are computed in; null for the dtype of the weights, which `precision` then names.
    """
    asked = decode(Cell, cell)
    on = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    net, tokenizer = loading.load(asked, on), loading.tokenizer(asked.settings.model)
    settings, precision = asked.settings.eval, None if autocast is None else getattr(torch, autocast)
    tasks = scoring.Tasks(settings, None)
    tasks.build()
    asked_for = (tasks, settings.batch_size, precision)
    seconds, items, used = {}, {}, {}
    for ours in (False, True):  # ours last: it casts the weights for good
        scoring.score(net, tokenizer, *asked_for, speedups=ours)  # warm-up: chooses kernels
        timing.synchronize()
        start = timing.clock()
        _, items[ours], used[ours] = scoring.score(net, tokenizer, *asked_for, speedups=ours)
        timing.synchronize()
        seconds[ours] = timing.clock() - start
    theirs, own = (_answers(items[ours]) for ours in (False, True))
    return {
        "precision": str(precision or net.dtype).removeprefix("torch."),
        "theirs": seconds[False],
        "ours": seconds[True],
        "answers": len(theirs),
        "same": int((theirs == own.reindex(theirs.index)).sum()),
        "speedups": used[True],
    }


def _answers(items: Any) -> Any:
    """By item, filter and metric: the generated text; for multiple choice, whether the answer is correct."""
    answers = items["prediction"].where(~items["prediction"].str.startswith("[("), items["value"].astype(str))
    return answers.set_axis(list(zip(*(items[k] for k in ("subject", "item", "filter", "metric")), strict=True)))


def trainer(cell: dict[str, Any], trl: bool = False) -> dict[str, Any]:
    """Tokens/s (median of the steps after warm-up) and peak of transformers' Trainer, or of TRL's."""
    from trainer import train
    from transformers import TrainerCallback

    asked = decode(Cell, cell)
    settings, on_cuda = asked.settings.train, torch.cuda.is_available()
    prepared = prepared_inputs.inputs_of(asked.settings, None)
    set_seed(asked.seed or 0)
    on = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    net = adapting.adapt(loading.load(asked, on), asked)
    optimizer = instantiate(asked.settings.method.optim, _convert_="all")(net)
    factor = loop.rate_factor(settings, len(prepared.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    steps = [plain.sequences(drawn) for (drawn,) in prepared.steps]
    batches = [plain.padded(examples, prepared.tokenizer.pad_token_id) for examples in steps]
    moments: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            timing.synchronize()
            moments.append(timing.clock())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            timing.synchronize()
            moments.append(timing.clock())

    bf16 = on_cuda and device.compute_dtype(settings.precision) is torch.bfloat16
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    loss = train(net, optimizer, schedule, batches, settings, Watch(), bf16=bf16, trl=trl, tokenizer=prepared.tokenizer)
    seconds = [end - start for start, end in list(pairwise(moments))[::2]]
    raw = [sum(len(example.ids) for example in examples) for examples in steps]
    rates = [tokens / taken for tokens, taken in zip(raw, seconds, strict=True)][min(loop.WARMUP, len(raw) - 1) :]
    return {"rate": median(rates), "peak": torch.cuda.max_memory_allocated() if on_cuda else None, "loss": loss}


def random(architecture: dict[str, Any], dtype: str, folder: str) -> dict[str, Any]:
    """Write a model of this architecture with random weights to `folder`, with the tokenizer of the tiny model."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from harness.job.models import embedded

    tokenizer = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    dimensions = dict(architecture)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(dimensions.pop("model_type"), **dimensions, **ids)
    on = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    torch.manual_seed(0)
    with on:
        net = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    building = Path(f"{folder}.{os.getpid()}")
    net.save_pretrained(building)
    tokenizer.save_pretrained(building)
    building.rename(folder)
    return {"weights": sum(p.numel() for p in net.parameters())}


ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {
    "busy": busy,
    "engine": engine,
    "trainer": trainer,
    "random": random,
}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not part of the result
    result = ANSWERS[sys.argv[1]](**json.load(sys.stdin))
    print(json.dumps(result), file=answers, flush=True)
