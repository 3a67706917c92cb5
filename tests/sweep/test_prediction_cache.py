"""A plan's predictions are kept on disk, and are asked for anew when anything changes that they follow from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from job_helpers import composed

from harness import boot
from harness.protocol import PlanCells, PlannedCell
from harness.sweep import prediction_cache, runner
from harness.sweep.prediction_cache import PredictionCache

HEAD = {"budget": 8, "kernels": "cpu", "calibration": None, "environment": {"device": {"type": "cpu"}, "threads": 2}}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prediction_cache, "ACCELERATORS", ())


@pytest.fixture
def asked(monkeypatch):
    """The methods of each request that reached a job, which answers with a peak of a byte."""
    requests = []

    def ask(what, request):
        requests.append([planned.cell.method for planned in request.cells])
        return [HEAD, *({"prediction": {"peak": {"weights": 1}, "method": m}} for m in requests[-1])]

    monkeypatch.setattr(runner, "_ask", ask)
    return requests


def cells(*methods, **more):
    settings = [f"{name}={value}" for name, value in more.items()]
    return [PlannedCell(composed("model=tiny", f"method={method}", "data=wordmath", *settings)) for method in methods]


def test_a_second_plan_asks_no_job(asked):
    first = runner.plan(cells("base", "lora"), None)
    assert runner.plan(cells("base", "lora"), None)["predictions"] == first["predictions"]
    assert runner.plan(cells("lora", "dora"), None)["predictions"][1]["method"] == "dora"
    assert asked == [["base", "lora"], ["dora"]]


def test_another_request_is_another_prediction(asked):
    for more in ({}, {"budget": 9}, {"kernels": "cuda"}):
        runner.plan(cells("lora"), None, **more)
    runner.plan([replace(cells("lora")[0], architecture={"model_type": "qwen3"})], None)
    assert len(asked) == 4


def test_code_and_packages_are_part_of_the_name(asked, monkeypatch, tmp_path):
    package = tmp_path / "harness"
    package.mkdir()
    (package / "loop.py").write_text("x = 1")
    monkeypatch.setattr(prediction_cache, "PACKAGE", package)
    runner.plan(cells("lora"), None)
    (package / "loop.py").write_text("x = 2")
    runner.plan(cells("lora"), None)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "peft-99.0.dist-info").mkdir()
    runner.plan(cells("lora"), None)
    runner.plan(cells("lora"), None)
    assert len(asked) == 3
    assert boot.PACKAGE.name == "harness"


def test_files_of_the_model_are_part_of_the_name(asked, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    one = cells("lora", **{"model.path": model})
    for _ in range(2):
        runner.plan(one, None)
    (model / "tokenizer.json").write_text("{}")
    runner.plan(one, None)
    assert len(asked) == 2


@pytest.mark.parametrize("folder", ["hub/datasets--openai--gsm8k", "datasets/openai___gsm8k"])
def test_files_of_a_data_set_of_the_hub_are_part_of_the_name(asked, monkeypatch, tmp_path, folder):
    """Lengths are assumed until it is here, and then are known."""
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    one = [PlannedCell(composed("model=tiny", "method=lora", "data=gsm8k"))]
    for _ in range(2):
        runner.plan(one, None)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "main.parquet").write_text("")
    runner.plan(one, None)
    assert len(asked) == 2


def test_what_follows_from_more_is_not_kept(asked, monkeypatch, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "a", "answer": "b"}))
    own = [PlannedCell(composed("model=tiny", "method=lora", "data=local", f"data.path={tmp_path / 'mine.jsonl'}"))]
    cell = cells("lora")[0].cell
    method = replace(cell.settings.method, init={"_target_": "job_helpers.start"})  # code in no installed package
    theirs = [PlannedCell(replace(cell, settings=replace(cell.settings, method=method)))]
    gguf = cells("lora", **{"model.path": "owner/name/model.gguf"})
    for planned, root in ((own, None), (theirs, None), (gguf, None), (cells("lora"), str(tmp_path))):
        before = len(asked)
        runner.plan(planned, root)
        runner.plan(planned, root)
        assert len(asked) == before + 2
    monkeypatch.setattr(prediction_cache, "ACCELERATORS", (str(tmp_path),))  # one is here, and its memory decides
    runner.plan(cells("lora"), None)
    runner.plan(cells("lora"), None)
    assert len(asked) == 10


def test_old_files_go_and_broken_ones_are_written_again(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(prediction_cache, "KEPT", 2)
    runner.plan(cells("base", "lora", "dora"), None)
    kept = list((tmp_path / "cache" / "predictions").iterdir())
    assert len(kept) == 2
    for path in kept:
        path.write_text("{")
    assert PredictionCache(PlanCells([], None, None, 1, 1.0, None)).head is None
    monkeypatch.setattr(prediction_cache, "KEPT", 100)
    runner.plan(cells("lora"), None)
    runner.plan(cells("lora"), None)
    assert asked[-1] == ["lora"]


def test_a_folder_that_can_not_be_written_is_left(asked, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    assert runner.plan(cells("lora"), None)["budget"] == 8
