"""Without a plug-in its commands, settings and choices are gone, and all else works: what is promised of plug-ins.

Nothing here names one. A plug-in is removed as a person would: its folder, from a copy of the package.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from plugin_list import FOLDER, HERE, SHIPPED

from harness import plugin
from harness.cli.commands import command_line
from harness.config import ROOT
from harness.record import read_study

# What a copy says of itself: its commands, the keys of its settings, its modules, and those that can't be imported.
FACTS = """
import importlib, json, pkgutil, sys
import harness
from harness.cli.commands import command_line
from harness.config_help import config_groups

modules, broken = [], {}
for module in pkgutil.walk_packages(harness.__path__, "harness."):
    names = module.name.split(".")
    if "job" in names or names[-1] == "__main__":  # these import model libraries, or run
        continue
    modules.append(module.name)
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        broken[module.name] = str(error)
facts = {"place": harness.__file__, "commands": command_line("harness").names(), "modules": modules, "broken": broken}
facts["settings"] = [field.key for group in config_groups() for field in group.fields]
print(json.dumps(facts))
"""
TINY = ("model=tiny", "rank=4", "data=wordmath_short", "train.max_steps=1", "train.batch_size=2", "infer.repeats=0")
TINY += ("train.validation_items=2", "eval=wordmath_short", "eval.limit=4")


def copied(folder: Path, *without: str) -> Path:
    """A copy of what runs, without these plug-ins."""

    def left_out(place: str, names: list[str]) -> set[str]:
        return set(without) & set(names) if Path(place) == FOLDER else set()

    for name in ("harness", "conf", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on the package in `folder`, and there."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def facts(folder: Path) -> dict[str, Any]:
    told = python(folder, "-c", FACTS)
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert Path(facts["place"]).is_relative_to(folder)
    return facts


def commands_of(part: plugin.Plugin) -> list[str]:
    """The commands that a plug-in adds to those of the core, some of which it may give more options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin, "installed", lambda: ())
        line = command_line("harness")
    own = line.names()
    if part.commands is not None:
        plugin.load(part.commands)(line)
    return [name for name in line.names() if name not in own]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    return facts(copied(tmp_path_factory.mktemp("whole")))


def test_the_plugins_here_are_those_that_are_listed():
    """So that no test is left out because a plug-in seems to be missing, and its tests go with it."""
    tests = {path.name for path in Path(__file__).parent.iterdir() if any(path.glob("test_*.py"))}
    assert tests <= HERE
    assert HERE <= SHIPPED, "docs/architecture.md lists them"
    assert {part.name for part in plugin.installed()} >= HERE, "a plug-in has the name of its folder"


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(HERE))
def test_without_a_plugin_nothing_of_it_is_there_and_all_else_is(name, whole, tmp_path):
    (part,) = [part for part in plugin.installed() if part.name == name]
    commands, own = commands_of(part), f"harness.plugins.{name}"
    assert whole["broken"] == {}
    left = facts(copied(tmp_path, name))
    assert left["broken"] == {}
    assert left["modules"] == [m for m in whole["modules"] if m != own and not m.startswith(f"{own}.")]
    assert left["commands"] == [command for command in whole["commands"] if command not in commands]
    assert left["settings"] == [key for key in whole["settings"] if key.partition(".")[0] not in part.settings]
    shown = python(tmp_path, "-m", "harness", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    listed = re.findall(r"^  ([\w-]+)  +\S", shown.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(left["commands"])
    for command in commands[:1]:
        refused = python(tmp_path, "-m", "harness", command)
        (line,) = refused.stderr.splitlines()
        assert refused.returncode == 2
        assert line.startswith(f"error: There is no command '{command}'.")


def test_no_file_of_the_core_names_a_plugin():
    """Neither by an import nor in a text: what it says of them it asks harness/plugin.py."""
    for folder, ending in (("harness", "*.py"), ("conf", "*.yaml"), ("sweeps", "*.yaml")):
        for path in (ROOT / folder).rglob(ending):
            if not path.is_relative_to(FOLDER):
                named = re.search(r"\bharness[./]plugins[./](?!NAME\b)\w", path.read_text(encoding="utf-8"))
                assert not named, path


@pytest.mark.slow
@pytest.mark.long
def test_without_any_plugin_a_sweep_is_run_and_compared(tmp_path):
    folder = copied(tmp_path, *HERE)
    assert not any("plugins." in module for module in facts(folder)["modules"])
    harness = partial(python, folder, "-m", "harness")
    swept = harness("sweep", "study=alone", "method=lora,dora", "seed=0", *TINY)
    assert swept.returncode == 0, swept.stderr
    records, problems = read_study(folder / "results" / "alone")
    assert problems == []
    assert sorted((record.cell.method, record.status) for record in records) == [("dora", "ok"), ("lora", "ok")]
    table = harness("table", "alone", "--format", "md")
    assert table.returncode == 0, table.stderr
    assert set(re.findall(r"^\| (lora|dora) ", table.stdout, re.MULTILINE)) == {"lora", "dora"}
    for command, statuses in {
        ("report", "alone", "--out", "page.html"): {0},
        ("figures", "alone", "--out", "drawn"): {0},
        ("status", "alone"): {0},
        ("lint", "alone"): {0, 1},  # 1: it found something
        ("verify", "alone"): {0},
    }.items():
        done = harness(*command)
        assert done.returncode in statuses, done.stderr
        assert "Traceback" not in done.stderr, command
    assert (folder / "page.html").stat().st_size > 100_000
    assert list((folder / "drawn").rglob("*.png"))
