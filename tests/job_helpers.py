"""Cells of the tiny model, composed from the real configuration and run in this process."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR

from harness import cell_runner
from harness.config import CONF, ROOT, Config
from harness.job.data import batching, encoding, sources
from harness.job.evaluate.engine import Engine
from harness.job.models import adapting, loading
from harness.job.phases import probe
from harness.job.run_cell import run_cell
from harness.job.training import attention, loop
from harness.job.training.divergence import Divergence, HeldOutLoss, Validation
from harness.job.training.early_stop import EarlyStop
from harness.protocol import Progress, RunCell
from harness.record import Cell, Precautions, Record, Train, ValidationPoint
from harness.sweep import cells, runner
from harness.sweep.app.composing import Composer
from harness.sweep.app.plugins import register
from harness.sweep.store import Study

# fp32 everywhere: accelerate keeps one precision a process, and closed forms are compared with what is computed.
TINY = (
    *("model=tiny", "rank=8", "train.precision=fp32", "train.max_steps=3", "train.batch_size=2"),
    *("train.validation_items=4", "+data.load.train=64", "+data.load.validation=8", "eval=facts", "eval.limit=4"),
    *("infer.repeats=1", "infer.prompt_tokens=8", "infer.new_tokens=2"),
)
torch.set_num_threads(1)  # for so small a model threads only get into each other's way
probe.matmul_peak = functools.cache(
    probe.matmul_peak
)  # of the machine, not of the cell: measured once, it takes seconds

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} (GSM8K, MMLU) is not there")


@pytest.fixture(scope="module", autouse=True)
def no_peak():
    """Cells of the module that imports this don't measure the device's matmul peak, which takes most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "matmul_peak", lambda device, dtype: 1e10)
        yield


def tiny(*overrides: str) -> Cell:
    """A cell on the tiny model: 3 steps of 2 word problems, 4 questions on facts, unless `overrides` say otherwise."""
    return composed(*TINY, *overrides)


def composed(*overrides: str) -> Cell:
    """The cell that these overrides of conf/config.yaml mean."""
    return cells.from_config(_compose(overrides))


@Composer
def _compose(overrides: Sequence[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*overrides])


def run_tiny(folder: Path, *overrides: str) -> Record:
    """Run such a cell to its record in `folder`."""
    return run_here(folder, tiny(*overrides))


def run_here(folder: Path, cell: Cell, **more: Any) -> Record:
    """Run the cell to its record in `folder`. more: of RunCell."""
    folder.mkdir(parents=True, exist_ok=True)
    return run_request(cell, "test", folder / f"{cell.name}.json", None, lambda event: None, **more)


def noted_answers(monkeypatch) -> list[tuple[tuple, str]]:
    """A list that fills with what cells of this process are asked to write, and what they write."""
    asked = []
    generate = Engine.generate_until

    def noted(self, requests, disable_tqdm=False):
        answers = generate(self, requests, disable_tqdm)
        asked.extend(zip([request.args for request in requests], answers, strict=True))
        return answers

    monkeypatch.setattr(Engine, "generate_until", noted)
    return asked


def run_request(
    cell: Cell, study: str, path: Path, data_root: str | None, report: Callable[[dict], None], **options: Any
) -> Record:
    """Run `cell` in this process, by a request with `options`."""
    by_plugin = cell_runner.runner_of(cell.settings)
    run = run_cell if by_plugin is None else by_plugin.run
    return run(RunCell(cell, study, str(path), data_root, **options), report)


def run_leased(
    cell: Cell,
    study: Study,
    data_root: str | None,
    on_event: Callable[[Progress], None],
    precautions: Precautions | None = None,
    **options: Any,
) -> Record:
    """Run `cell` in a job of its own, as a sweep does."""
    request = runner.request_for(cell, study, data_root, precautions=precautions or Precautions(), **options)
    with study.lease(cell) as lease:
        return runner.run(request, study, lease, on_event)


def prepared(cell: Cell) -> SimpleNamespace:
    """What a job has in hand when training starts: net, optimizer, steps, held_out batches, tokenizer, accelerator.

    examples: of each micro-batch, of each of its sequences the token ids and how many are the prompt's.
    """
    settings = cell.settings.train
    accelerator = Accelerator(mixed_precision="no")
    set_seed(cell.seed or 0)
    base, tokenizer = loading.load(cell, accelerator.device), loading.tokenizer(cell.settings.model)
    splits = sources.splits(cell.settings.data, None)
    texts = {k: encoded(tokenizer, items, settings.max_length) for k, items in splits.items()}

    def samples(size: int) -> Iterator[batching.Batch]:
        padded = batching.Layout(flat=False, pad=tokenizer.pad_token_id)
        return (padded.batch(texts["train"][i : i + size]) for i in range(0, len(texts["train"]), size))

    net = adapting.adapt(base, cell, samples)
    layout, _ = attention.layout(net, cell.settings.speedups, tokenizer.pad_token_id)
    if layout.flat:
        attention.enable(net)
    accum = settings.grad_accum or 1
    order = batching.batches(
        len(texts["train"]), settings.batch_size, (settings.max_steps or 1) * accum, cell.settings.seed or 0
    )
    drawn = [[texts["train"][i] for i in indices] for indices in order]
    micro = [layout.batch(examples) for examples in drawn]
    bench: dict[str, Any] = {
        "cell": cell,
        "settings": settings,
        "accelerator": accelerator,
        "tokenizer": tokenizer,
        "net": net,
        "samples": samples,
        "examples": [[(e.ids, e.prompt) for e in examples] for examples in drawn],
        "steps": [micro[i : i + accum] for i in range(0, len(micro), accum)],
        "held_out": [layout.batch(texts["validation"][: settings.validation_items])],
        "optimizer": None,
    }
    if cell.settings.method.optim is not None:
        optimizer = instantiate(cell.settings.method.optim, _convert_="all")(net)
        bench["net"], bench["optimizer"] = accelerator.prepare(net, optimizer)
    return SimpleNamespace(**bench)


def encoded(tokenizer, items: list[encoding.Item], max_length: int = 512) -> list[encoding.Example]:
    """`items` tokenised under the default prompt."""
    return encoding.encode_all(tokenizer, items, Config().data.prompt, max_length)


def trained(
    bench: SimpleNamespace,
    validate: Callable[[], float] = lambda: 0.0,
    report: Callable[[dict], None] = lambda event: None,
    begin: Callable[[int], None] = lambda step: None,
    guess: float = math.inf,
    early_stop: EarlyStop | None = None,
) -> tuple[Train, list[ValidationPoint]]:
    """Run the loop on what a job has in hand: what it measured, and the validations."""
    steps, history = loop.StepBatches(bench.steps, lambda batch: batch, begin), loop.History()
    schedule = LambdaLR(bench.optimizer, loop.rate_factor(bench.settings, len(steps)))
    divergence = Divergence(guess, at_once=early_stop is not None)
    held_out = lambda: HeldOutLoss(validate())  # noqa: E731
    validation = Validation(held_out, bench.settings.validate_every, len(steps), divergence, early_stop)
    follow = (history, divergence, validation, report, early_stop)
    loop.train(bench.net, bench.optimizer, schedule, steps, bench.settings, bench.accelerator, *follow)
    return history.measured(steps.fingerprint, None), history.validations


def moved(*overrides: str) -> SimpleNamespace:
    """A bench whose adapter moves every matrix it is on, as training would."""
    bench = prepared(tiny(*overrides))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in bench.net.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
            elif "lora_magnitude_vector" in name:
                p.mul_(1 + 0.1 * torch.randn_like(p))
    return bench
