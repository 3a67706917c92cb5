"""Engines of plug-ins that write answers elsewhere: who is asked, and what they get."""

from __future__ import annotations

from dataclasses import replace

import pytest
from job_helpers import no_peak, run_request, tiny  # noqa: F401

from harness import plugin
from harness.errors import UserError
from harness.job import preflight
from harness.job.ended import CellEnded
from harness.plugin import Plugin
from harness.protocol import LocalPaths
from harness.record import VllmUsage, model_folder

USAGE = VllmUsage("1.0", 4, 100, 50, 30.0, 5.0)


class Parrot:
    """Answers every question alike; it keeps what it was asked, by name."""

    seen: dict[str, object] = {}  # noqa: RUF012  of all that are loaded

    def check(self, settings, local):
        self.seen["checked"] = (settings.eval.engine, local)

    def writer(self, model, local):
        self.seen |= {"model": model, "local": local}
        return self

    usage = USAGE

    def beside(self, ordinary, answered):
        ordinary.generate_until = lambda requests, disable_tqdm=False: ["It is 7."] * len(requests)
        return ordinary, {"parrot": "on"}


class Mute(Parrot):
    def writer(self, model, local):
        raise CellEnded("It has no voice.")


@pytest.fixture
def engines(monkeypatch):
    offered = {"parrot": f"{__name__}:Parrot", "mute": f"{__name__}:Mute"}
    monkeypatch.setattr(plugin, "installed", lambda: (Plugin("birds", engines=offered),))
    monkeypatch.setattr(Parrot, "seen", {})


def by(engine, *overrides):
    cell = tiny("infer.repeats=0", *overrides)
    return replace(cell, settings=replace(cell.settings, eval=replace(cell.settings.eval, engine=engine)))


def run(folder, cell, **options):
    return run_request(cell, "demo", folder / f"{cell.name}.json", None, lambda event: None, **options)


def test_an_engine_that_no_plugin_has_is_refused(engines):
    with pytest.raises(UserError, match=r"^eval\.engine=owl requires a plug-in that has this engine\.$"):
        preflight.check([by("owl")], None)


def test_an_engine_checks_and_writes_what_its_cells_are_asked(engines, tmp_path):
    local = LocalPaths("/a/python")
    cell = by("parrot", "eval.tasks=[facts,wordmath]")
    preflight.check([cell], None, local)
    assert Parrot.seen["checked"] == ("parrot", local)
    record = run(tmp_path, cell, local=local)
    assert record.status == "ok", record.failure
    assert record.vllm == USAGE
    assert record.environment["speedups"]["parrot"] == "on"
    assert (Parrot.seen["model"].cell, Parrot.seen["model"].whole, Parrot.seen["local"]) == (cell, None, local)
    assert "save_for_parrot" in record.phases


def test_a_task_without_answers_needs_no_writer(engines, tmp_path):
    record = run(tmp_path, by("mute"))
    assert (record.status, record.vllm) == ("ok", None)


def test_a_cell_whose_engine_fails_keeps_the_weights_that_it_saved(engines, tmp_path):
    cell = by("mute", "eval.tasks=[wordmath]")
    record = run(tmp_path, cell, save="merged")
    assert (record.status, record.failure.phase, record.failure.reason) == (
        *("failed", "save_for_mute"),
        "It has no voice.",
    )
    assert record.saved is not None
    assert model_folder(tmp_path / f"{cell.name}.json").is_dir()
