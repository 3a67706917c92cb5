"""Data and models that can't be had are refused before the libraries of training are imported, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from job_helpers import composed

from harness.config import ROOT
from harness.record import encode

LIBRARIES = {"accelerate", "bitsandbytes", "lm_eval", "peft", "torch"}
LOOK = f"""
import json, sys
from harness.errors import UserError
from harness.job import reachable
from harness.record import Cell, decode

try:
    reachable.check([decode(Cell, json.load(sys.stdin))], None)
except UserError as error:
    print(error)
print(len({LIBRARIES!r} & sys.modules.keys()))
"""
REFUSED = {
    "column": (["data=local", "data.path=rows.jsonl"], "no column 'question'"),
    "data of the hub": (["data=local", "data.path=own/name"], "own/name is not in the hub's cache"),
    "model of the hub": (["model=qwen3_1_7b"], "Qwen/Qwen3-1.7B-Base is not in the hub's cache"),
    "file of the hub": (["model=tiny", "model.path=own/name/model.gguf"], "own/name/model.gguf is not in the hub's"),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a file of data whose columns have other names."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"one": n, "two": -n}) + "\n" for n in range(40)))
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_had_is_refused_without_the_libraries_of_training(case, folder, monkeypatch):
    settings, fact = REFUSED[case]
    monkeypatch.chdir(folder)
    cell = composed("method=lora", *settings)
    end = subprocess.run(
        [sys.executable, "-c", LOOK], input=json.dumps(encode(cell)), text=True, capture_output=True, check=True
    )
    sentence, imported = end.stdout.splitlines()
    assert fact in sentence
    assert imported == "0"


@pytest.mark.long
@pytest.mark.parametrize("command", [["run"], ["sweep", "seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize("case", ["column", "model of the hub"])
def test_a_command_says_so_before_it_imports_them(case, command, folder, tmp_path_factory):
    """peft fails in these jobs, whether it is imported in the server or in a job."""
    path = tmp_path_factory.mktemp("path")  # another folder, as jobs import nothing from the one they work in
    (path / "peft.py").write_text("raise ImportError('peft was imported')\n")
    settings, fact = REFUSED[case]
    end = subprocess.run(
        [str(Path(sys.executable).with_name("harness")), *command, "method=lora", *settings, "results_dir=results"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{path}"},
        capture_output=True,
        text=True,
    )
    assert fact in end.stderr
    assert end.returncode == 2
    assert not [*(folder / "results").glob("**/*.json")]
