"""An exception in each phase, and a loss that is no number: a row with its reason, and the sweep goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest
from grid import ENVIRONMENT, finish_anyhow, records, start
from job_helpers import run_request, tiny

from harness.record import read

pytestmark = pytest.mark.faults

# Makes an adapter's configuration, which happens in the phase load, and has the job break as it enters `phase`.
BREAKING = """
import peft
import torch
from harness.job import run_cell
from harness.job.models import structure
from harness.job.reporter import Reporter

enter, load, stepped = Reporter.enter, run_cell.load, Reporter.end_step
loaded = []

def config(phase, **slot):
    def broken(*_, **__):
        raise RuntimeError(f"broken in {phase}")

    def loading(cell, result):
        told = load(cell, result)
        loaded.append(told[0])
        return told

    def entering(reporter, name):
        enter(reporter, name)
        if name == phase:
            broken()
        if name == "train" and phase == "poison":
            with torch.no_grad():
                next(p for p in loaded[0].parameters() if p.requires_grad).fill_(torch.nan)

    def stepping(reporter, event):
        stepped(reporter, event)
        if phase == "step" and event["step"] == 2:
            broken()

    if phase == "load":
        structure.count = broken  # the phase has begun by now
    Reporter.enter, run_cell.load, Reporter.end_step = entering, loading, stepping
    return peft.LoraConfig(**slot)
"""
PHASES = ["load", "probe", "train", "infer", "merge", "serve", "score"]  # of a LoRA cell
TOLD = {phase: ("failed", phase, None, f"RuntimeError: broken in {phase}") for phase in PHASES}
TOLD["step"] = ("failed", "train", 2, "RuntimeError: broken in step")
TOLD["poison"] = ("diverged", "train", 1, "The loss became nan at step 1; a lower lr or stronger clipping may help.")


def test_what_breaks_in_any_phase_is_a_row_and_the_sweep_goes_on(tmp_path, tell):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "breaking.py").write_text(BREAKING)
    sweep = start(
        tmp_path,
        *("method=lora", "seed=0", "infer.repeats=1", "infer.prompt_tokens=8", "infer.new_tokens=2"),
        *("method.adapt._target_=breaking.config", f"+method.adapt.phase={','.join([*TOLD, 'none'])}"),
        PYTHONPATH=f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path / 'lib'}",
    )
    status, words = finish_anyhow(sweep)
    assert status == 1, words
    assert f"Done: 1 diverged, {len(TOLD) - 1} failed, 1 ok." in words
    assert "Traceback" not in words
    found = {r.cell.settings.method.adapt["phase"]: r for r in records(tmp_path)}
    assert found.pop("none").status == "ok"
    assert {phase: (r.status, r.failure.phase, r.failure.step, r.failure.reason) for phase, r in found.items()} == TOLD
    for record in found.values():
        before = PHASES[: PHASES.index(record.failure.phase)]
        assert list(record.phases)[: len(before)] == before, "what was measured is kept"
    command = [sys.executable, "-m", "harness", "table"]
    table = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    for *_, reason in TOLD.values():
        assert reason.partition(";")[0].rstrip(".") in table.stdout  # without the advice
    tell(f"{len(TOLD)} cells broken in {', '.join(TOLD)}; each is a row.")


def test_an_untuned_cell_that_breaks_in_its_own_phase(tmp_path):
    def report(event: dict) -> None:
        if event["phase"] == "validate":
            raise RuntimeError("broken in validate")

    cell = tiny("method=base")
    path = tmp_path / f"{cell.name}.json"
    run_request(cell, "test", path, None, report)
    record = read(path)
    assert (record.status, record.failure.phase, record.failure.reason) == (
        *("failed", "validate", "RuntimeError: broken in validate"),
    )
