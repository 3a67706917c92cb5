"""What the tests of docs/adding/ share: a page's own blocks, and a copy of the project to add them to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from harness.config_folders import ROOT


def blocks(page: str, language: str) -> list[str]:
    """The code of a page, whose NAME is `mine`."""
    text = (ROOT / "docs" / "adding" / f"{page}.md").read_text(encoding="utf-8")
    return [found.replace("NAME", "mine") for found in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def copy_of_project(folder: Path) -> Path:
    """A copy of the project in `folder`, for what is a part of it."""
    for name in ("harness", "conf", "sweeps", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "results").mkdir()
    (folder / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    return folder


def python(project: Path, *arguments: str) -> str:
    """What Python prints in the copy `project`."""
    environment = os.environ | {"PYTHONPATH": f"{project}:{project / 'docs'}"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
