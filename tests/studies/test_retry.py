"""Cells run again from their records: with what they ran with, but for what the command says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from records import make_record

from harness import validate
from harness.__main__ import main
from harness.errors import UserError
from harness.record import Precautions, read_study, write
from harness.studies import retry
from harness.sweep import runner
from harness.sweep.store import Study

RAN_WITH = Precautions(timeout=60.0, save_every=10, on_oom=True)


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ((), {}),
        (("timeout=7200",), {"timeout": 7200.0}),
        (("timeout=null", "train.save_every=null"), {"timeout": None, "save_every": None}),
        (("train.save_every=50", "retry.on_oom=true"), {"save_every": 50, "on_oom": True}),
        (("retry.on_oom=false",), {"on_oom": False}),
    ],
)
def test_changes_are_parsed_like_settings(overrides, changed):
    assert retry.changes(overrides) == changed


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "lr=1e-3",
            r"`retry` changes only timeout=, train.save_every=, retry.on_oom=; got lr=1e-3\.",
        ),
        ("save=merged", r"`retry` changes only .*; got save=merged"),
        ("timeout", r"`retry` changes only .*; got timeout\."),
        ("timeout=0", r"timeout must be positive or null, got 0\.$"),
        ("timeout=soon", r"timeout: Value 'soon' "),
        ("train.save_every=0", r"train.save_every must be 1 or more, or null, got 0"),
        ("train.save_every=1.5", r"train.save_every: Value '1.5' "),
        ("retry.on_oom=maybe", r"retry.on_oom: Value 'maybe' "),
    ],
)
def test_impossible_changes_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, override, said):
    with pytest.raises(UserError, match=f"^{said}"):
        retry.changes([override])
    monkeypatch.chdir(tmp_path)
    assert main(["retry", "--failed", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.fixture
def retried(cell, tmp_path, monkeypatch):
    """retried(*overrides, **kept): what `retry --failed` has the job of a failed cell do, whose record holds `kept`."""

    def run(*overrides: str, **kept: Any) -> dict[str, Any]:
        given = []

        def ends_well(request, study, lease, on_event):
            given.append({name: getattr(request, name) for name in ("precautions", "save", "tracker")})
            return dataclasses.replace(study.recorded(request.cell), status="ok", failure=None)

        failed = make_record("lora", status="failed")
        failed = dataclasses.replace(failed, cell=cell("method=lora"), precautions=RAN_WITH, **kept)
        write(failed, Study(tmp_path / "results", "demo").path(failed.cell))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(runner, "check", lambda *_, **__: {})
        monkeypatch.setattr(runner, "run", ends_well)
        assert main(["retry", *overrides[:1], "--failed", *overrides[1:]]) == 0
        return given[0]

    return run


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ((), {}),
        (("timeout=7200",), {"timeout": 7200.0}),
        (("train.save_every=5", "retry.on_oom=false"), {"save_every": 5, "on_oom": False}),
        (("timeout=null", "train.save_every=null"), {"timeout": None, "save_every": None}),
    ],
)
def test_a_cell_keeps_what_it_ran_with_but_for_what_is_said(retried, overrides, changed):
    given = {"precautions": dataclasses.replace(RAN_WITH, **changed), "save": "none", "tracker": None}
    assert retried(*overrides) == given


@pytest.mark.parametrize("kept", [{"save": "adapter"}, {"save": "merged"}, {"tracker": "tensorboard"}])
def test_other_requests_of_the_sweep_are_repeated(retried, kept):
    given = {"precautions": dataclasses.replace(RAN_WITH, timeout=7200.0), "save": "none", "tracker": None}
    assert retried("timeout=7200", **kept) == given | kept


def test_a_tracker_that_is_not_here_is_said_before_anything_runs(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "find_spec", lambda name: None)
    failed = dataclasses.replace(make_record("lora", status="failed"), cell=cell("method=lora"), tracker="wandb")
    with pytest.raises(UserError, match=r"^tracker=wandb is not installed: pip install wandb\.$"):
        retry.retry(Study(tmp_path, "demo"), [failed], None)


@pytest.mark.parametrize(
    ("overrides", "changed", "why"),
    [
        (("train.objective=kto", "data=ultrafeedback"), {"on_oom": True}, "its loss depends on the pairs"),
        (("train.early_stopping=2", "train.validate_every=5"), {"save_every": 5}, "do not keep the best weights"),
        (("method=adamw_8bit", "method.adamw=paged"), {"save_every": 5}, "paged memory can't be restored"),
    ],
)
def test_what_a_sweep_refuses_is_refused_again(cell, tmp_path, overrides, changed, why):
    failed = dataclasses.replace(make_record("lora", status="failed"), cell=cell("method=lora", *overrides))
    with pytest.raises(UserError, match=rf"^{failed.cell.name} is not run: .*{why}"):
        retry.retry(Study(tmp_path, "demo"), [failed], None, changed)


@pytest.mark.long
@pytest.mark.slow
def test_a_cell_that_took_too_long_is_given_longer_and_saved_as_its_sweep_asked(inside, tmp_path):
    tiny = ("model=tiny", "train.max_steps=2", "train.batch_size=2", "train.validation_items=2", "infer.repeats=0")
    swept = inside("sweep", *tiny, "method=lora", "eval.tasks=[]", "study=s", "save=adapter", "timeout=0.01")
    assert swept.returncode == 1, swept.stderr
    folder = tmp_path / "results" / "s"
    ((found,), _) = read_study(folder)
    assert (found.status, found.save, found.saved) == ("failed", "adapter", None)
    assert "longer than timeout=0.01 seconds" in found.failure.reason

    run = inside("retry", "--failed", "timeout=null", "train.save_every=1")
    assert run.returncode == 0, run.stderr
    ((again,), _) = read_study(folder)
    assert (again.status, again.save, again.saved.form) == ("ok", "adapter", "adapter")
    assert again.precautions == Precautions(timeout=None, save_every=1)
    assert again.train.save_every == 1
    assert (folder / found.cell.name / "adapter_model.safetensors").is_file()
