"""What a job can import: the harness that runs it, libraries and the user's modules, nothing of the folders around."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import boot
from harness.config import ROOT

SEEN_BY_JOBS = str(Path(__file__).parents[1] / "seen_by_jobs")
CELL = (
    *("method=lora", "model=tiny", "rank=4", "train.max_steps=1", "train.batch_size=2", "train.validation_items=1"),
    *("eval.tasks=[]", "infer.repeats=0", "+data.load.train=64", "+data.load.validation=8"),
    *("method.optim._target_=importing.build", "+method.optim.told=told.jsonl"),
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A working folder with a module beside the results, and a module among them."""
    (tmp_path / "results").mkdir()
    for module in (tmp_path / "beside_it.py", tmp_path / "results" / "among_results.py"):
        module.touch()
    return tmp_path


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        (("run",), 1),
        pytest.param(("run", "train.devices=2"), 2, marks=pytest.mark.long),
        pytest.param(
            ("sweep", "seed=0,1", "hydra/launcher=local_parallel", "hydra.launcher.cells=2"), 2, marks=pytest.mark.long
        ),
        pytest.param(("plan", "seed=0"), 1, marks=pytest.mark.long),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else None,
)
def test_a_job_imports_nothing_from_the_folders_around(folder, arguments, processes):
    command, *more = arguments
    run = harness(folder, command, *CELL, *more)
    assert run.returncode == 0, run.stderr
    told = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    assert len(told) >= 2 * processes
    assert len({line["rank"] for line in told}) == (2 if "train.devices=2" in arguments else 1)
    for line in told:
        assert line["planted"] == []
        assert not {"", ".", str(folder), str(folder / "results"), str(ROOT)} & set(line["path"])
        assert SEEN_BY_JOBS in line["path"], "the user's own modules are found"
        assert line["harness"] == str(ROOT / "harness" / "__init__.py"), "a job runs the code of its sweep"


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command line in `folder`, which the import path names in each way there is."""
    path = [str(ROOT), SEEN_BY_JOBS, "", ".", "results", str(folder / "results"), str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_import_path_of_a_child(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lib = str(folder / "lib")
    for path, kept in (("", None), (".", None), (f"{folder}:{lib}::{ROOT}:{ROOT}/results/reference", lib)):
        monkeypatch.setenv("PYTHONPATH", path)
        assert boot.environment().get("PYTHONPATH") == kept
    assert boot.environment()["PYTHONSAFEPATH"] == "1"
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # of a terminal; logs are in UTF-8
    assert boot.environment()["PYTHONUTF8"] == "1"
    assert "PYTHONIOENCODING" not in boot.environment()
    (folder / "link").symlink_to(folder / "results")
    assert boot.import_path([str(folder / "link")]) == []
