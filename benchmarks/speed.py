"""Speed of the harness against the plain way (plain.py), in paired runs; renders `benchmarks/RESULTS.md`.

    make bench                                       # all parts, about an hour on 2 idle cores
    python benchmarks/speed.py training mmlu gsm8k sweep losses [--data-root FOLDER] [--pairs N]
    python benchmarks/speed.py                       # renders again from saved measurements

The two sides of a pair run one after the other, in alternating order. A ratio is the median over pairs, with the
smallest and the largest. Measurements are saved in `benchmarks/measured/PART.json`, with machine and date.

training  steps on the same batches, of GSM8K with --data-root, else of wordmath; both sides in one process, so that
          both reuse freed memory in the same way (harness/job/measure/heap.py)
trainer   likewise, beside transformers' Trainer in the precision of our training, and with our layers compiled
mmlu      5 shots, 10 questions per subject, by lm-eval's HFLM and by our engine, in fp32; requires --data-root
gsm8k     5 shots, likewise
agreement GSM8K likewise, on two models in fp32 and in bf16: how many predictions are the same
sweep     the quickstart: each cell by plain.py in a process of its own, and by `harness sweep`
losses    validation loss after 50 steps on both sides
launches  what a step starts on a GPU, counted without one (launches.py)
beside    steps of a cell, alone and next to a process that keeps one core busy, with waiting threads that sleep (as in
          jobs) and that spin (OpenMP's default); on a CPU
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any
from unittest import mock

import hydra
import launches
import plain
import torch
import trainer
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from speed_page import OWN, STEPS, WALL, page
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness import env
from harness.config import CONF, ROOT
from harness.job import speedups
from harness.job.data import batching, encoding, sources
from harness.job.evaluate import scoring
from harness.job.measure import device
from harness.job.models import loading
from harness.job.training import attention, compiled, loop
from harness.record import Cell, Record, read_study
from harness.sweep import app
from harness.sweep.cells import from_config

HERE = Path(__file__).parent
MEASURED = HERE / "measured"
METHODS = ("lora", "qlora", "dora", "dora_fast", "full", "galore", "galore_rsvd")
COMPILED = ("lora", "dora_fast", "full")  # each costs up to a minute and a half of compilation
TRAINING = ("model=smollm2_135m", "rank=16", "train.batch_size=4")
STUDY = "beside"
AGREEING = ("smollm2_135m", "qwen2_5_coder_0_5b")  # of the second a file is downloaded
BATCH = 16  # questions at a time


def plain_way_of(method: str) -> str:
    """The method to compare with: peft's DoRA for `dora_fast`, galore-torch's GaLore for `galore_rsvd`."""
    return method.partition("_")[0]


def composed(*overrides: str) -> Cell:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return from_config(hydra.compose("config", list(overrides)))


def ratios(plain_side: list[float], ours: list[float]) -> dict[str, Any]:
    """The medians of paired seconds, and of plain / ours the median, smallest and largest of the pairs."""
    each = sorted(a / b for a, b in zip(plain_side, ours, strict=True))
    return {
        "plain": median(plain_side),
        "ours": median(ours),
        "ratio": median(each),
        "least": each[0],
        "largest": each[-1],
        "pairs": len(each),
    }


def clock() -> str:
    """How this process is timed. On one CPU thread, process time excludes what else the machine does."""
    return OWN if torch.get_num_threads() == 1 and not torch.accelerator.is_available() else WALL


def now(by: str | None = None) -> float:
    """Seconds by this process's clock. by: WALL if other processes do the work."""
    return time.process_time() if (by or clock()) == OWN else time.perf_counter()


def timed(take: Callable[[], Any], by: str | None = None) -> float:
    """Seconds of a call of `take`, by the clock that `now` has for `by`."""
    start = now(by)
    take()
    return now(by) - start


def paired(pairs: int, plainly: Callable[[int], Any], ours: Callable[[int], Any]) -> dict[str, Any]:
    """Time both sides of `pairs` pairs, in alternating order; each side is called with the pair's number."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for at in (0, 1) if pair % 2 else (1, 0):
            seconds[at].append(timed(functools.partial((plainly, ours)[at], pair)))
    return ratios(*seconds)


class Side(ABC):
    """One side's model, optimizer and step; all sides train on the same examples."""

    net: nn.Module
    optimizer: Optimizer
    layout: batching.Layout
    schedule: LRScheduler

    def __init__(self, method: str, text: str, switch: str, *more: str):
        """switch: the setting `speedups`."""
        asked = (f"data={text}", f"train.max_steps={STEPS}", f"method={method}", f"speedups={switch}")
        self.cell = composed(*TRAINING, *asked, *more)
        self.settings = self.cell.settings.train.tuned()
        self.bf16 = device.compute_dtype(self.settings.precision) is torch.bfloat16
        self.tokenizer = loading.tokenizer(self.cell.settings.model)
        self.pad = self.tokenizer.pad_token_id

    def _begin(self) -> LRScheduler:
        """Ready the model for training; returns the schedule of its learning rate.

        Layers are compiled into an empty folder, so that what compiling takes doesn't depend on runs before this one.
        """
        if self.settings.compile:
            self.kept = tempfile.TemporaryDirectory()
            with mock.patch.dict(os.environ, HARNESS_CACHE=self.kept.name):
                compiled.enable(self.net)
        self.net.train()
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, loop.rate_factor(self.settings, STEPS))

    @abstractmethod
    def step(self, examples: list[encoding.Example]) -> None:
        """Take an optimizer step."""

    @abstractmethod
    def validation_loss(self, held_out: list[encoding.Example]) -> float:
        """As in a record: in the precision of training."""

    @abstractmethod
    def validation_loss_fp32(self, held_out: list[encoding.Example]) -> float:
        """In fp32, without rounding of weights. Later calls are in fp32 too."""

    def _loss(self, net: nn.Module, held_out: list[encoding.Example], accelerator: Accelerator) -> float:
        batches = [self.layout.batch([*held_out[i : i + 4]]) for i in range(0, len(held_out), 4)]
        return loop.answer_loss(net, batches, accelerator)

    def _loss_fp32(self, net: nn.Module, held_out: list[encoding.Example]) -> float:
        # accelerate keeps one precision a process, which is the other side's.
        plainly: Any = SimpleNamespace(device=device.here(), autocast=nullcontext)
        return self._loss(net, held_out, plainly)


class PlainSide(Side):
    """The plain way's."""

    def __init__(self, method: str, text: str, *more: str):
        super().__init__(method, text, "off", "train.precision=fp32", *more)
        self.net = plain.built(self.cell)
        self.optimizer = plain.optimizer_of(self.cell, self.net)
        self.layout, _ = attention.layout(self.net, "off", self.pad)
        self.schedule = self._begin()

    def step(self, examples: list[encoding.Example]) -> None:
        plain.step(self.net, self.optimizer, plain.padded(examples, self.pad), self.settings.max_grad_norm)
        self.schedule.step()

    def validation_loss(self, held_out: list[encoding.Example]) -> float:
        return self._loss_fp32(self.net, held_out)

    def validation_loss_fp32(self, held_out: list[encoding.Example]) -> float:
        return self._loss_fp32(self.net, held_out)


class OurSide(Side):
    """The harness's."""

    def __init__(self, method: str, text: str, *more: str):
        super().__init__(method, text, "auto", *more)
        self.accelerator = Accelerator(mixed_precision="bf16" if self.bf16 else "no")
        net = plain.built(self.cell)
        optimizer = plain.optimizer_of(self.cell, net)
        self.layout, _ = speedups.enable(net, "auto", self.pad, self.accelerator)
        self.net, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.schedule = self._begin()

    def step(self, examples: list[encoding.Example]) -> None:
        micro = [self.layout.batch([*examples]).to(self.accelerator.device)]
        norm = self.settings.max_grad_norm
        loop.take_step(self.net, self.optimizer, micro, norm, self.accelerator, lambda part: None)
        self.schedule.step()

    def validation_loss(self, held_out: list[encoding.Example]) -> float:
        return self._loss(self.net, held_out, self.accelerator)

    def validation_loss_fp32(self, held_out: list[encoding.Example]) -> float:
        return self._loss_fp32(self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False), held_out)


def examples_for(side: Side, data_root: str | None) -> tuple[list[list[encoding.Example]], list[encoding.Example]]:
    """The training batches, and 32 held-out examples."""
    data, settings = side.cell.settings.data, side.settings
    splits = sources.splits(data, data_root)
    encode = encoding.encoder(side.tokenizer, data, settings.max_length)
    steps = batching.scheduled(splits["train"], settings, 0, encode)
    return [plain.sequences(drawn) for (drawn,) in steps], plain.sequences(encode(splits["validation"][:32]))


def training(pairs: int, data_root: str | None) -> dict[str, Any]:
    text = "gsm8k" if data_root else "wordmath"
    return {"text": text, "rows": {method: _steps(method, text, pairs, data_root) for method in METHODS}}


def _steps(method: str, text: str, pairs: int, data_root: str | None) -> dict[str, Any]:
    plainly, ours = PlainSide(plain_way_of(method), text), OurSide(method, text)
    batches, _ = examples_for(ours, data_root)
    for side in (plainly, ours):  # kernels are chosen and state is allocated; GaLore's first projection
        side.step(batches[0])
    row = paired(pairs, lambda i: plainly.step(batches[i + 1]), lambda i: ours.step(batches[i + 1]))
    return _told(method, row, batches[1 : pairs + 1])


def beside_trainer(pairs: int, data_root: str | None) -> dict[str, Any]:
    text = "gsm8k" if data_root else "wordmath"
    return {"text": text, "rows": {method: _steps_beside_trainer(method, text, pairs, data_root) for method in METHODS}}


def _steps_beside_trainer(method: str, text: str, pairs: int, data_root: str | None) -> dict[str, Any]:
    """Ratios of `pairs` steps. Ours are taken between the Trainer's steps, inside its own loop."""
    AcceleratorState._reset_state(reset_partial_state=True)  # the last method's Trainer made its own
    others = {"ours": OurSide(method, text)}
    if method in COMPILED:
        others["compiled"] = OurSide(method, text, "train.compile=true")
    batches = examples_for(others["ours"], data_root)[0][: pairs + 1]
    seconds: dict[str, list[float]] = {name: [] for name in (*others, "trainer")}

    def step(at: int) -> None:
        for name in list(others)[:: 1 if at % 4 < 2 else -1]:
            seconds[name].append(timed(functools.partial(others[name].step, batches[at])))

    class Between(TrainerCallback):
        """Has ours take even steps before the Trainer, odd ones after it."""

        def on_step_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            if state.global_step % 2 == 0:
                step(state.global_step)
            self.begin = now()

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            seconds["trainer"].append(now() - self.begin)
            if state.global_step % 2 == 0:  # it counts the step that has just ended
                step(state.global_step - 1)

    rival = PlainSide(plain_way_of(method), text)
    padded = [plain.padded(examples, rival.pad) for examples in batches]
    compiling = compiled.seconds()
    trainer.train(rival.net, rival.optimizer, rival.schedule, padded, rival.settings, Between(), bf16=rival.bf16)
    compiling = compiled.seconds() - compiling
    for each in seconds.values():  # in the first step kernels are chosen and state is allocated
        each.pop(0)
    row = ratios(seconds["trainer"], seconds["ours"])
    if method in COMPILED:
        row["compiled"] = ratios(seconds["trainer"], seconds["compiled"]) | {"compiling": compiling}
        torch.compiler.reset()
    return _told(method, row, batches[1:])


def _told(method: str, row: dict[str, Any], batches: list[list[encoding.Example]]) -> dict[str, Any]:
    """`row` with the mean tokens of the steps that it times, without and with padding; printed, as it takes long."""
    row["raw"] = sum(len(e.ids) for batch in batches for e in batch) / len(batches)
    row["padded"] = sum(len(batch) * max(len(e.ids) for e in batch) for batch in batches) / len(batches)
    print(method, row, file=sys.stderr, flush=True)
    return row


def losses(pairs: int, data_root: str | None) -> dict[str, Any]:
    text = "gsm8k" if data_root else "wordmath"

    @functools.cache
    def after(method: str, plainly: bool) -> dict[str, float]:
        side = PlainSide(method, text) if plainly else OurSide(method, text)
        batches, held_out = examples_for(side, data_root)
        before = side.validation_loss(held_out)
        for batch in batches:
            side.step(batch)
        own = side.validation_loss(held_out)
        return {"before": before, "own": own, "fp32": side.validation_loss_fp32(held_out)}

    rows = {}
    for method in METHODS:
        plainly, ours = after(plain_way_of(method), True), after(method, False)
        rows[method] = {"before": plainly["before"], "plain": plainly["fp32"], "ours": ours["fp32"], "own": ours["own"]}
        print(method, rows[method], file=sys.stderr, flush=True)
    return {"text": text, "rows": rows}


def answers(
    name: str,
    items: int,
    pairs: int,
    data_root: str | None,
    model: str = TRAINING[0],
    precision: str = "fp32",
) -> dict[str, Any]:
    """Pairs on `items` questions each of two subjects, spread over the alphabet; of one subject on its next `items`."""
    if data_root is None:
        raise SystemExit(f"{name} requires --data-root, a folder with cais/mmlu and openai/gsm8k.")
    cell = composed(*TRAINING, model, "method=base", f"train.precision={precision}")
    autocast = torch.bfloat16 if precision == "bf16" else None
    net, tokenizer = loading.load(cell, device.here()), loading.tokenizer(cell.settings.model)
    asked = dataclasses.replace(cell.settings.eval, tasks=[name], num_fewshot=5, limit=None, batch_size=BATCH)
    tasks = scoring.Tasks(asked, data_root)
    subjects = sorted(tasks.leaves)
    spread = subjects[:: max(1, len(subjects) // (2 * pairs))]
    predictions: dict[int, list[Any]] = {}

    def take(pair: int, ours: bool) -> None:
        start = 0 if len(subjects) > 1 else pair * items
        chosen = spread[2 * pair : 2 * pair + 2] if len(subjects) > 1 else subjects
        tasks.sample = {subject: list(range(start, start + items)) for subject in chosen}
        _, found, _ = scoring.score(net, tokenizer, tasks, BATCH, autocast, speedups=ours)
        keys = ["subject", "item", "filter", "metric"]
        predictions.setdefault(pair, []).append(found.set_index(keys)["prediction"].map(_answer))

    row = paired(pairs, lambda i: take(i, False), lambda i: take(i, True))
    row["predictions"] = sum(len(one) for one, _ in predictions.values())
    row["same"] = int(sum((one == other.reindex(one.index)).sum() for one, other in predictions.values()))
    print(name, row, file=sys.stderr, flush=True)
    return row


def agreement(pairs: int, data_root: str | None) -> dict[str, Any]:
    """GSM8K in fp32 and in bf16, by model: where answers are equal, and where rounding tells them apart."""
    cases = [(model, precision) for model in AGREEING for precision in ("fp32", "bf16")]
    rows = {f"{m}, {p}": answers("gsm8k", 8, pairs, data_root, f"model={m}", p) for m, p in cases}
    return {"rows": rows}


def _answer(prediction: str) -> Any:
    """The written text, or the index of the largest log-likelihood."""
    if not prediction.startswith("[("):
        return prediction
    likelihoods = [likelihood for likelihood, _ in ast.literal_eval(prediction)]
    return likelihoods.index(max(likelihoods))


def sweep(pairs: int, data_root: str | None) -> dict[str, Any]:
    """Our sweep runs before and after the plain cells, so that a drift of the machine's speed favours neither."""

    def seconds_of(command: list[str]) -> float:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return timed(lambda: subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL), WALL)

    def ours(folder: Path) -> tuple[float, dict[str, Record]]:
        whole = seconds_of([sys.executable, "-m", "harness", "sweep", "quickstart", f"results_dir={folder}"])
        return whole, {record.cell.method: record for record in read_study(folder / "quickstart")[0]}

    def plainly(method: str, folder: Path) -> tuple[float, dict[str, Any]]:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cell = from_config(
                hydra.compose("quickstart", [f"method={method}", "speedups=off", "train.precision=fp32"])
            )
        asked, out = folder / "cell.json", folder / "out.json"
        asked.write_text(json.dumps(dataclasses.asdict(cell)), encoding="utf-8")
        seconds = seconds_of([sys.executable, str(HERE / "plain.py"), str(asked), str(out)])
        return seconds, json.loads(out.read_text(encoding="utf-8"))["scores"]

    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, before = ours(folder / "before")
        plain_cells = {method: plainly(method, folder) for method in before}
        last, after = ours(folder / "after")
    for method, (seconds, scores) in plain_cells.items():
        both, score_ = (before[method], after[method]), before[method].scores[0]
        rows[method] = {
            "plain": seconds,
            "ours": mean(record.seconds for record in both),
            "plain_score": scores[score_.task][f"{score_.metric},{score_.filter}"],
            "score": score_.value,
            "stderr": score_.stderr,
            "phases": {name: mean(record.phases[name].seconds for record in both) for name in both[0].phases},
        }
    return {"rows": rows, "wholes": [first, last], "clock": WALL}


def beside(pairs: int, data_root: str | None) -> dict[str, Any]:
    """Seconds of a step by how threads wait; `plain` is OpenMP's way, which takes minutes a cell beside a busy core."""
    ways: tuple[dict[str, str], ...] = ({"GOMP_SPINCOUNT": "300000"}, {})  # what libgomp spins for where nothing is set

    def step(way: dict[str, str], folder: Path) -> float:
        short = ("train.max_steps=4", "eval.tasks=[]", "infer.repeats=0", "train.validation_items=4", f"study={STUDY}")
        command = [sys.executable, "-m", "harness", "run", "method=lora", "data=wordmath_short", *TRAINING, *short]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | way
        subprocess.run([*command, f"results_dir={folder}"], check=True, env=environment, stdout=subprocess.DEVNULL)
        (record,), _ = read_study(folder / STUDY)
        if record.train is None:
            raise RuntimeError(f"The cell was not trained: its record has status {record.status}.")
        return median(record.train.step_seconds[1:])

    rows = {}
    for name, others, most in (("alone", 0, 3), ("beside one busy core", 1, 1)):
        seconds: tuple[list[float], list[float]] = ([], [])
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            for pair in range(min(pairs, most)):
                for at in (0, 1) if pair % 2 else (1, 0):
                    with tempfile.TemporaryDirectory() as folder:
                        seconds[at].append(step(ways[at], Path(folder)))
        finally:
            for process in busy:
                process.kill()
        rows[name] = ratios(*seconds)
    return {"rows": rows, "clock": WALL}


PARTS: dict[str, Callable[[int, str | None], dict[str, Any]]] = {
    "training": training,
    "trainer": beside_trainer,
    "mmlu": functools.partial(answers, "mmlu", 10),
    "gsm8k": functools.partial(answers, "gsm8k", 8),
    "agreement": agreement,
    "sweep": sweep,
    "losses": losses,
    "beside": beside,
    "launches": launches.launches,
}


def kept(name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Measure, and save the result as `name`, with machine and date."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    found = measure()
    described = env.describe()
    where = f"{torch.get_num_threads()} threads of {described['cpu']['name']}"
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    packages = ("torch", "transformers", "peft", "lm_eval")
    versions = {package: described["versions"][package].partition("+")[0] for package in packages}
    told = {"started": started, "where": where, "versions": versions, "git": described["git"]}
    told["clock"] = clock()
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{name}.json").write_text(json.dumps(told | found, indent=1) + "\n", encoding="utf-8")


def add_parts(parser: argparse.ArgumentParser, known: Collection[str]) -> None:
    """The argument `parts`: some of `known`, or none, which argparse's own `choices` would not have."""

    def part(name: str) -> str:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name} is no part: there are {', '.join(known)}")
        return name

    parser.add_argument("parts", nargs="*", type=part, help="what to measure (none: only render)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_parts(parser, PARTS)
    parser.add_argument("--data-root", help="a folder that holds openai/gsm8k and cais/mmlu")
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    app.register()
    for part in arguments.parts:
        kept(part, functools.partial(PARTS[part], arguments.pairs, arguments.data_root))
    rendered = page(MEASURED, PARTS)
    (HERE / "RESULTS.md").write_text(rendered, encoding="utf-8")
    print(rendered, end="")


if __name__ == "__main__":
    main()
