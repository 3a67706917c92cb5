"""The Dockerfile is sound by its linter. `.ci/image` runs its steps, in turns, as building an image needs a daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = Path(sys.executable).parent / "hadolint"


@pytest.mark.skipif(not LINTER.exists(), reason="hadolint has no wheel for this platform")
def test_the_dockerfile_has_no_fault():
    linted = subprocess.run([LINTER, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a copy without its history")
def test_what_a_run_reads_is_copied_into_the_image():
    """Of what Docker leaves out, git has nothing but studies of the user's own."""
    left_out = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {path.split("/")[0] for path in tracked.splitlines()}
    assert not folders & set(left_out)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    results = {"/".join(path.split("/")[:2]) for path in tracked.splitlines() if path.startswith("results/")}
    assert results == set(kept)
