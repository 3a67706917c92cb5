"""`make compare`: what it says before, and how it ends."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess

import pytest

from harness.cli.commands import command_line
from harness.config import ROOT

ANSWER = "lora and dora tie."
# In place of the environment's harness: writes down what it is called with, and fails in the command FAILS.
HARNESS = f"""#!/bin/sh
echo "$*" >> called
[ "$1" = sweep ] && echo "{ANSWER}"
[ "$1" != "$FAILS" ]
"""


@pytest.fixture
def compare(tmp_path):
    """compare(fails): `make compare` in a folder with an environment, and the commands that it ran."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    harness = tmp_path / ".venv" / "bin" / "harness"
    harness.parent.mkdir(parents=True)
    harness.write_text(HARNESS)
    harness.chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()

    def run(fails=""):
        made = subprocess.run(
            ["make", "compare"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "FAILS": fails},
            capture_output=True,
            text=True,
        )
        called = [line.split() for line in (tmp_path / "called").read_text().splitlines()]
        (tmp_path / "called").unlink()
        return made, called

    return run


def test_it_ends_with_the_answer_the_picture_and_three_commands(compare):
    made, called = compare()
    assert made.returncode == 0
    assert [words[0] for words in called] == ["sweep", "figures", "table"]
    first, *_ = made.stdout.splitlines()
    assert re.search(r"five methods.*\d+ minutes", first)
    end = made.stdout.partition(ANSWER)[2]
    assert "Picture: results/quickstart/figures/accuracy_memory.png\n" in end
    after = end.partition("Next:\n")[2].splitlines()
    assert len(after) == 3
    for line in after:
        _, name, *arguments = shlex.split(line, comments=True)
        command_line("harness").command(name).parse_intermixed_args(arguments, argparse.Namespace())


@pytest.mark.parametrize("fails", ["sweep", "figures", "table"])
def test_a_failure_is_its_exit_status_and_the_end_is_shown(compare, fails):
    made, called = compare(fails)
    assert made.returncode != 0
    assert [words[0] for words in called] == ["sweep", "figures", "table"]
    assert "Next:\n" in made.stdout


def test_installing_says_how_long_it_takes(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    made = subprocess.run(["make", "setup", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode != 0
    assert re.search(r"Installing .* into .venv: about \d+ minutes", made.stdout)


@pytest.mark.long
def test_the_picture_is_drawn_where_it_says(inside, tmp_path):
    shutil.copytree(ROOT / "results" / "reference" / "quickstart", tmp_path / "results" / "quickstart")
    assert inside("figures", "quickstart").returncode == 0
    assert (tmp_path / "results" / "quickstart" / "figures" / "accuracy_memory.png").stat().st_size > 10_000
    assert inside("table", "quickstart", "--out", "results/quickstart/TABLE.md").returncode == 0
    assert "lora, dora and galore tie" in (tmp_path / "results" / "quickstart" / "TABLE.md").read_text()
