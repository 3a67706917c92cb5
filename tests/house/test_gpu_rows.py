"""The tables of `make gpu`: a row that breaks loses no other, and what a machine lacks is said in its row or line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_list import MISSING

from harness.config import ROOT
from harness.errors import UserError
from harness.record import read_study
from harness.sweep.estimates import card

sys.path.append(str(ROOT))
from benchmarks.gpu import checks
from benchmarks.gpu.bench import MODELS, Bench, OutOfTime, Rows, Skip

RECORDS = {record.cell.method: record for record in read_study(checks.REFERENCE)[0]}
LORA = RECORDS["lora"]


def bench_of(device: str, folder: Path, gpus: tuple[str, ...] = ()) -> Bench:
    compute = {"device": {"type": device, "name": "NVIDIA H100 80GB HBM3"}, "formats": {"bf16": "yes"}}
    facts = {"job": {"compute": compute}}
    bench = Bench(folder, facts, ["model=smollm2_135m"], time.monotonic() + 600, gpus)
    bench.methods = ["lora", "dora", "full"]
    return bench


def second_breaks(answer: Any) -> Callable[..., Any]:
    """A function that answers the same each time, but the second time raises."""
    calls = 0

    def answered(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ZeroDivisionError("of\nnothing")
        return dict(answer) if isinstance(answer, dict) else answer

    return answered


PEAKS = {"predicted": 1, "measured": 1, "tensors": 1, "difference": 0.0, "reserved": None}
TIMES = {"planned s": 1.0, "measured s": 1.0, "difference": 0.0}
SCORED = {"precision": "float32", "theirs": 1.0, "ours": 1.0, "answers": 4, "same": 4, "speedups": {}}
RATES = {"rate": 1.0, "peak": None, "loss": 1.0}
# By check what of it is replaced, and by what.
BROKEN: dict[str, tuple[Any, str, Any]] = {
    "cells": (Bench, "record", LORA),
    "plain": (Bench, "record", LORA),
    "memory": (checks, "_peaks", PEAKS),
    "time": (checks, "_step_times", TIMES),
    "calibrate": (checks, "_calibrated_times", TIMES),
    "attention": (checks, "_probed", SimpleNamespace(attention={"varlen bfloat16": 1})),
    "engine": (Bench, "beside", SCORED),
    "throughput": (Bench, "beside", RATES),
    "busy": (Bench, "beside", {"kernels": 1, "seconds": 0.5, "wall": 1.0}),
    "quickstart": (Bench, "record", LORA),
    "savers": (Bench, "record", LORA),
    "devices": (Bench, "record", LORA),
    "vllm": (Bench, "record", LORA),
    "large": (Bench, "record", LORA),
}


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in MISSING])
def test_an_exception_in_one_row_never_loses_another(tmp_path, monkeypatch, name):
    monkeypatch.setattr(checks, "_records", lambda bench: [(method, LORA) for method in ("lora", "dora", "full")])
    monkeypatch.setattr(checks, "_peaks", lambda *_: dict(PEAKS))
    monkeypatch.setattr(checks, "_step_times", lambda *_: dict(TIMES))
    monkeypatch.setattr(checks.runner, "calibrate", lambda *_: None)
    monkeypatch.setattr(Bench, "obstacle", lambda self, method: None)
    monkeypatch.setattr(Bench, "build_random", lambda *_: None)
    monkeypatch.setattr(checks, "LARGE_METHODS", ("lora", "dora", "full"))
    monkeypatch.setenv("HARNESS_VLLM_PYTHON", sys.executable)
    of, attribute, answer = BROKEN[name]
    monkeypatch.setattr(of, attribute, second_breaks(answer))
    found = checks.run(name, bench_of("cuda", tmp_path, ("0", "1")))
    assert len(found.rows) > 1
    broken = [row.get("reason") == "ZeroDivisionError: of nothing" for row in found.rows]
    assert broken == [i == 1 for i in range(len(found.rows))]
    assert all(len(row) > 1 for row in found.rows), "the others have their figures"
    assert found.status == "failed"
    assert "ZeroDivisionError: of nothing" in found.detail


def test_a_row_ends_by_what_ended_it():
    table = Rows(strict=True)
    for error in (Skip("no GPU"), OutOfTime("late"), UserError("rank must be positive, got 0."), KeyError("peak")):
        with table.row(method=type(error).__name__):
            raise error
    assert [row["status"] for row in table.rows] == ["not run", "not run", "refused", "failed"]
    assert table.wrong == ["UserError: rank must be positive, got 0.", "KeyError: KeyError: 'peak'"]
    assert table.skipped == ["Skip: no GPU", "OutOfTime: late"]
    assert table.check("two are wrong").status == "failed"
    with pytest.raises(KeyboardInterrupt), table.row(method="stopped"):
        raise KeyboardInterrupt


def test_rows_of_which_none_was_run_skip_the_check():
    table = Rows(strict=False)
    for method in ("lora", "dora"):
        with table.row(method=method):
            raise UserError("it requires a CUDA device.")
    with pytest.raises(Skip, match=r"^lora: it requires a CUDA device\.; dora: it"):
        table.check("")


def test_what_the_machine_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    one = bench_of("cuda", tmp_path, ("0",))
    assert checks.run("devices", one).detail == "it requires 2 GPUs, got 1"
    assert checks.run("vllm", one).detail.startswith("no vLLM: HARNESS_VLLM_PYTHON names no python")
    assert checks.run("large", bench_of("cpu", tmp_path)).detail == "no CUDA device"
    one.facts["job"]["compute"]["device"]["name"] = "Abacus"
    monkeypatch.setattr(checks, "_records", lambda bench: [("lora", LORA)])
    told = checks.run("time", one)
    assert (told.status, told.detail) == (
        "skipped",
        "lora: plan knows no rates of Abacus: no file of conf/device names it",
    )


def test_a_large_model_that_does_not_fit_says_so_in_its_row(tmp_path, monkeypatch):
    why = {"lora": "it needs 30 GiB and 24 GiB are free", "qlora": None}
    monkeypatch.setattr(Bench, "obstacle", lambda self, method: why[method])
    monkeypatch.setattr(Bench, "build_random", lambda *_: None)
    monkeypatch.setattr(Bench, "record", lambda *_, **__: LORA)
    monkeypatch.setattr(checks, "_peaks", lambda *_: dict(PEAKS))
    monkeypatch.setattr(checks, "_step_times", lambda *_: dict(TIMES))
    monkeypatch.setattr(checks.runner, "calibrate", lambda *_: None)
    bench = bench_of("cuda", tmp_path)
    bench.methods = list(why)
    found = checks.run("large", bench)
    assert [row["status"] for row in found.rows] == ["not run", "ok"]
    assert found.rows[0]["reason"] == why["lora"]
    assert found.status == "passed"
    assert found.detail.endswith("lora: it needs 30 GiB and 24 GiB are free")


def test_a_large_model_without_room_on_the_disk_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "obstacle", lambda self, method: None)
    monkeypatch.setattr(checks, "LARGE_BYTES", 1e16)
    monkeypatch.setattr(checks, "MODELS", tmp_path)
    found = checks.run("large", bench_of("cuda", tmp_path))
    assert "GiB of free disk" in found.detail
    assert found.status == "skipped"


@pytest.mark.long
def test_every_cell_of_the_further_checks_composes(tmp_path):
    bench = bench_of("cuda", tmp_path, ("0", "1"))
    cells = [bench.cell("lora", *checks.TRAINING_ALONE, *more) for more in checks.PARALLEL.values()]
    assert [cell.settings.train.parallel for cell in cells] == [None, "ddp", "fsdp"]
    eight = bench.of_model([f"model={checks.LARGE}", f"model.path={MODELS / checks.LARGE}"], checks.LARGE_METHODS)
    eight.load = checks.LARGE_LOAD
    assert {eight.cell(method).settings.train.max_length for method in checks.LARGE_METHODS} == {2048}
    assert next(iter(eight.architectures.values()))["hidden_size"] == 4096
    assert bench.card == card.load("h100")


# A card from before Ampere


def without_bf16(folder: Path) -> Bench:
    bench = bench_of("cuda", folder)
    bench.facts["job"]["compute"]["formats"]["bf16"] = "slower than fp32"
    bench.methods = ["lora", "full_bf16"]
    return bench


def test_methods_in_16_bits_are_not_run_on_a_card_without_bf16(tmp_path):
    cells = without_bf16(tmp_path).cells
    assert cells["full_bf16"] == "model.dtype=bfloat16 requires bf16, which this GPU lacks"
    assert cells["lora"].method == "lora"
    with_bf16 = bench_of("cuda", tmp_path)
    with_bf16.methods = ["full_bf16"]
    assert with_bf16.cells["full_bf16"].method == "full_bf16"


@pytest.mark.parametrize(("bf16", "status"), [("yes", "failed"), ("slower than fp32", "passed")])
def test_the_kernel_for_rows_is_asked_for_where_cells_compute_in_bf16(tmp_path, monkeypatch, bf16, status):
    bench = without_bf16(tmp_path)
    bench.facts["job"]["compute"]["formats"]["bf16"] = bf16
    speedups = LORA.environment["speedups"] | {"padding_free": "on"}
    probe = replace(LORA.probe, attention={"math float32": 30})
    record = replace(LORA, environment=LORA.environment | {"speedups": speedups}, probe=probe)
    monkeypatch.setattr(checks, "_records", lambda bench: [("lora", record)])
    assert checks.attention(bench).status == status
