"""The pages in docs/adding/: what each says is done literally, with its own blocks, and then used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from added import blocks, copy_of_project, python

from harness.config_folders import ROOT
from harness.record import read_study

SMALL = ["model=tiny", "train.max_steps=1", "train.batch_size=2", "train.validation_items=2", "infer.repeats=0"]


def add(folder: Path, place: str, text: str) -> None:
    """Write the file mine.yaml of the config group `place`, in the user's own `folder`."""
    path = folder / "conf" / place / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"^name: \w+$", "name: mine", text, flags=re.MULTILINE), encoding="utf-8")


@pytest.mark.long
def test_a_method_is_swept_and_shown(inside, tmp_path):
    (text,) = blocks("method", "yaml")
    add(tmp_path, "method", text)
    swept = inside("sweep", *SMALL, "data=facts", "eval.tasks=[]", "method=lora,mine", "study=adding")
    assert swept.returncode == 0, swept.stderr
    table = inside("table", "adding")
    assert table.returncode == 0
    assert "mine" in table.stdout


@pytest.mark.long
def test_a_data_set_is_swept_scored_and_shown(inside, tmp_path):
    text, tasks = blocks("data", "yaml")
    add(tmp_path, "data", text)
    add(tmp_path, "eval", tasks)
    folder = tmp_path / "store" / "tatsu-lab" / "alpaca"
    folder.mkdir(parents=True)
    rows = [{"instruction": f"Add {i} and {i}.", "output": f"It is {2 * i}."} for i in range(200)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["sweep", *SMALL, "data=mine", "method=base,lora", f"data_root={tmp_path / 'store'}", "study=adding"]
    swept = inside(*command)
    assert swept.returncode == 0, swept.stderr
    table = inside("table", "adding")
    assert table.returncode == 0
    assert "held_out" in table.stdout
    assert {record.cell.data for record in read_study(tmp_path / "results" / "adding")[0]} == {"mine"}


@pytest.mark.long
def test_a_model_is_planned_without_the_hub(inside, tmp_path):
    (text,) = blocks("model", "yaml")
    path = tmp_path / "conf" / "model" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    planned = inside("plan", "model=mine", "data=facts", "method=full,lora", "--device", "h100")
    assert planned.returncode == 0, planned.stderr
    assert "GiB" in planned.stdout


def test_a_choice_of_tasks_is_used(inside, tmp_path):
    (text,) = blocks("task", "yaml")
    add(tmp_path, "eval", text)
    shown = inside("run", *SMALL, "data=facts", "eval=mine", "--cfg", "job", "--package", "eval")
    assert shown.returncode == 0, shown.stderr
    assert "- gsm8k\n- mmlu\n" in shown.stdout
    assert "limit: 500" in shown.stdout


def test_a_launcher_extends_a_plugin(inside, tmp_path):
    pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed")
    (text,) = blocks("launcher", "yaml")
    add(tmp_path, "hydra/launcher", text)
    shown = inside("sweep", *SMALL, "data=facts", "seed=0,1", "hydra/launcher=mine", "--cfg", "hydra")
    assert shown.returncode == 0, shown.stderr
    assert "timeout_min: 240" in shown.stdout


def test_a_plugin_of_another_distribution_adds_its_command(tmp_path):
    plugin, commands = blocks("plugin", "python")
    (entry,) = blocks("plugin", "toml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(plugin, encoding="utf-8")
    (tmp_path / "mine" / "commands.py").write_text(commands, encoding="utf-8")
    installed = tmp_path / "mine-1.0.dist-info"  # as pip writes it
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = tomllib.loads(entry)["project"]["entry-points"]
    (installed / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{name} = {target}\n" for group, of in points.items() for name, target in of.items())
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "harness", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Count the cells that failed" in run("--help")
    assert run("mine", "--study", "reference/memory").startswith("reference/memory: 0 of ")


def test_a_method_has_an_entry_in_the_published_list(tmp_path):
    project = copy_of_project(tmp_path)
    (text,) = blocks("method", "yaml")
    add(project, "method", text)
    entry = "import catalogue; (entry,) = catalogue.entries('mine'); print(catalogue.section(entry, {'trainable': 0}))"
    listed = python(project, "-c", entry)
    assert listed.startswith("### mine\n\nrsLoRA (Kalajdzievski 2023")
