"""A model that no device can hold: the first rank reads it, each gets a share, and nothing else is ever held.

A device is a process here, whose memory is limited to less than the model's.
"""

from __future__ import annotations

import ctypes
import json
import pickle
import re
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from job_helpers import no_peak, run_leased, tiny  # noqa: F401
from several_devices import go, short
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from harness.config import CONF
from harness.errors import UserError
from harness.job.measure import heap
from harness.job.measure.live_memory import LiveBytes
from harness.job.models import embedded, loading, placement
from harness.job.run_cell import run_cell
from harness.job.training import distributed, launch, sharded_checkpoints
from harness.protocol import Progress, RunCell
from harness.record import Cell, Precautions, Record, read
from harness.sweep.store import Study

on_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="its devices are a CPU's")
LIMITED = ("rank=4", "train.batch_size=4", "train.max_steps=2", "train.validate_every=null", "infer.repeats=0")
NO_SCORES = ("eval.tasks=[]", "train.gradient_checkpointing=true", "speedups=off")  # which would keep freed memory
MARGIN = 0.97  # of the model: what a process may take above what it has at its start
MMAP_THRESHOLD = -3  # glibc's malloc.h


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """The folder of a model of 242 MB."""
    folder, tiny_one = tmp_path_factory.mktemp("large"), embedded.folder("tiny")
    config = AutoConfig.from_pretrained(tiny_one)
    for name, value in {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 20}.items():
        setattr(config, name, value)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 64
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_one).save_pretrained(folder)
    return folder


def memory(kind: str) -> int:
    """Bytes of this process, by Linux: VmData, RssAnon."""
    return 1024 * int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def limited(request: RunCell, report: Callable[[dict[str, Any]], None], rank: distributed.LaunchedRank) -> None:
    """Run the cell in a process that can't hold its model.

    The first maps the model's file as well, which takes no memory that the system can't have back. What it holds until
    training has ended is looked at instead. Then it has the whole model, as a CPU is one device.

    What counts is what is held. So what this process's parent had freed is returned first, and each tensor is mapped by
    itself: glibc would soon keep freed layers in its heap, more of them the faster the ranks are.
    """
    heap.give_back()
    assert ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**16)
    folder = Path(request.path).parent
    weights = next(Path(request.cell.settings.model.path).glob("*.safetensors")).stat().st_size
    before, ended = memory("RssAnon"), threading.Event()
    phase, peak = "", (0, "")
    mapped = weights if rank.number == 0 else 0
    limit = memory("VmData") + int(MARGIN * weights) + mapped
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, (memory("RssAnon") - before, phase))

    def watched(event: dict[str, Any]) -> None:
        nonlocal phase
        if (phase := event.get("phase", phase)) == "gather":
            end()
        report(event)

    def end() -> None:
        if not ended.is_set():
            ended.set()
            (folder / f"rank-{rank.number}").write_text(json.dumps((peak[0] / weights, peak[1])))
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    threading.Thread(target=look, daemon=True).start()
    run_cell(request, watched, rank)
    end()


def run_limited(folder: Path, model: Path, devices: int, *overrides: str) -> tuple[Record, list[list[Any]]]:
    """The record of a cell on so many limited processes, and of each its peak, in parts of the model, and its phase."""
    folder.mkdir()
    cell = tiny(f"model.path={model}", *LIMITED, *NO_SCORES, f"train.devices={devices}", *overrides)
    path = folder / f"{cell.name}.json"
    launch.run(devices, limited, RunCell(cell, "test", str(path)), lambda event: None)
    return read(path), [json.loads(each.read_text()) for each in sorted(folder.glob("rank-*"))]


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_processes_that_can_not_hold_the_model_train_it_together(tmp_path, large):
    alone, _ = run_limited(tmp_path / "ddp", large, 2, "method=lora", "train.parallel=ddp")
    assert (alone.status, alone.failure.phase in ("load", "probe")) == ("oom", True), alone.failure
    two, peaks = run_limited(tmp_path / "two", large, 2, "method=lora", "train.parallel=fsdp")
    assert two.status == "ok", two.failure
    assert len(peaks) == 2
    assert max(peak for peak, _ in peaks) < 0.9, peaks
    four, fewer = run_limited(tmp_path / "four", large, 4, "method=lora", "train.parallel=fsdp")
    assert four.status == "ok", four.failure
    assert len(fewer) == 4
    assert max(peak for peak, _ in fewer) < 0.9, fewer
    losses = [[point.loss for point in record.train.loss] for record in (two, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_tensor_may_end_while_sizes_are_measured():
    live, tensors = LiveBytes(torch.device("cpu")), [torch.ones(4), torch.ones(8)]
    live.see(tensors)
    live._sharded = True
    first = next(iter(live._storages))
    live._storages[first] = tensors.clear  # returns None, as a weak reference to what has ended
    live._measure()
    assert live.now == 0


# Checkpoints

SHARDED = ("train.devices=2", "train.parallel=fsdp", "eval.tasks=[]")


@pytest.mark.long
@pytest.mark.slow
@on_cpu
@pytest.mark.parametrize(
    "settings",
    [
        ("method=lora", "method.adapt.lora_dropout=0.3"),
        pytest.param(("method=full", "model.dtype=bfloat16"), marks=pytest.mark.long),  # with masters in its state
        pytest.param(("method=muon",), marks=pytest.mark.long),  # two optimizers as one
    ],
    ids=["lora", "masters", "muon"],
)
def test_a_sharded_cell_comes_to_the_same_losses_from_its_checkpoint(tmp_path, settings):
    cell, careful = short(*settings, *SHARDED), Precautions(save_every=2)
    unbroken = go(tmp_path / "unbroken", cell)

    def stop(event: Progress) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "broken", cell, stop, precautions=careful)
    saved = sorted(path.name for path in (tmp_path / "broken").rglob("step-2/*"))
    assert saved == ["about.json", "rank-0.pt", "rank-1.pt", "shares"]
    resumed = go(tmp_path / "broken", cell, precautions=careful)
    assert (unbroken.status, resumed.status) == ("ok", "ok"), resumed.failure
    assert resumed.train.resumed_at == [2]
    assert resumed.train.loss == unbroken.train.loss
    assert resumed.validation == unbroken.validation
    assert resumed.merge.max_logit_difference == unbroken.merge.max_logit_difference
    assert not list((tmp_path / "broken").rglob("step-*"))


@pytest.mark.long
@on_cpu
@pytest.mark.parametrize("method", sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - {"api"}))
def test_each_method_trains_on_shards_or_is_refused(tmp_path, method):
    settings = ("train.max_grad_norm=null", "model.dtype=bfloat16", "train.precision=bf16", "train.validation_items=4")
    reason = rf"^method={method} can't be combined with .*(fsdp|train.devices=2)"
    try:
        cell = tiny(f"method={method}", *SHARDED, *settings, "infer.repeats=0")
    except UserError as error:
        if not re.search(reason, str(error)):
            raise
        return
    if cell.settings.method.quantisation in ("int8wo", "fp8wo"):
        pytest.importorskip("torchao")
    record = run_leased(cell, Study(tmp_path, "study"), None, lambda event: None)
    assert record.status == "ok", record.failure


# After training


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_a_model_that_one_device_can_not_hold_is_divided_after_training(tmp_path, monkeypatch):
    """Over two devices that are one CPU here: with accelerate's hooks, as on GPUs."""
    cell = short("method=lora", "train.devices=2", "train.parallel=fsdp", "infer.repeats=1")
    whole = launched(tmp_path / "whole", cell)
    assert "divided_over" not in whole.environment
    load, places = loading.load, []

    def divided(cell: Cell, on: torch.device, over: dict[int, int] | None = None) -> torch.nn.Module:
        model = load(cell, on)
        if over is None:
            return model
        places.append(over)
        parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu"}
        parts |= dict.fromkeys(("model.norm", "model.rotary_emb", "lm_head"), "cpu")
        return dispatch_model(model, parts, main_device="cpu", force_hooks=True)

    monkeypatch.setattr(loading, "load", divided)
    monkeypatch.setattr(placement, "devices", lambda: [2**20, 2**20])
    record = launched(tmp_path / "divided", cell)
    assert record.environment["divided_over"] == 2
    assert [p.loss for p in record.train.loss] == [p.loss for p in whole.train.loss]
    assert record.inference.keys() == whole.inference.keys()
    assert record.merge.merged
    assert record.merge.max_logit_difference == pytest.approx(whole.merge.max_logit_difference, abs=1e-5)
    assert [(s.task, s.n) for s in record.scores] == [(s.task, s.n) for s in whole.scores]
    assert [s.value for s in record.scores] == pytest.approx([s.value for s in whole.scores], abs=1e-5)


def launched(folder: Path, cell: Cell) -> Record:
    """The record of `cell` on processes that this one starts."""
    folder.mkdir()
    path = folder / f"{cell.name}.json"
    code = launch.run(2, run_cell, RunCell(cell, "test", str(path)), lambda event: None)
    found = read(path)
    assert (found.status, code) == ("ok", 0), found.failure
    return found


def test_weights_go_to_one_device_or_over_all_or_nowhere():
    gib = 2**30
    assert placement.over(70 * gib, []) is None
    assert placement.over(70 * gib, [100 * gib] * 2) is None
    assert placement.over(80 * gib, [100 * gib] * 2) == {0: 90 * gib, 1: 90 * gib}
    with pytest.raises(MemoryError, match=r"takes 190.* GiB; 2 devices of the first machine have room for 180.* GiB"):
        placement.over(190 * gib, [100 * gib] * 2)


@on_cpu
def test_the_first_of_sharded_ranks_sees_all_devices_of_the_cell(monkeypatch):
    sharded, replicated = (
        RunCell(short("train.devices=2", f"train.parallel={way}"), "s", "r") for way in ("fsdp", "ddp")
    )
    assert launch._visible(2, sharded) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert launch._visible(2, sharded) == "4,5"
    assert launch._visible(2, replicated) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch._visible(2, sharded) == "0,1"


def test_a_list_of_tensors_can_bring_in_no_code(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError, match=r"names builtins\.print"):
        sharded_checkpoints._Reader(tmp_path).read_metadata()
