"""Planted secrets are in nothing that is written, also if a sweep is killed, or a launcher's workers run its cells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from grid import PATIENCE
from planted_secrets import SECRETS, TELLTALE, TINY

from harness.config import ROOT
from harness.redact import HIDDEN

pytestmark = pytest.mark.faults

HANGING = TELLTALE.replace(
    "    os.write(",
    """    if model.device.type == "meta":  # it is only looked at whether there can be such an optimizer
        return
    import time; time.sleep(600)
    os.write(""",
)
needs_submitit = pytest.mark.skipif(not find_spec("submitit"), reason="the extra `slurm` is not installed")


def sweep(folder: Path, telltale: str, *overrides: str) -> subprocess.Popen:
    """Start a sweep in `folder` over a cell that is fine and one that tells secrets as `telltale` does."""
    (folder / "lib").mkdir()
    (folder / "lib" / "telltale.py").write_text(telltale)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder / 'lib'}", "HF_HUB_OFFLINE": "1"} | SECRETS
    targets = "method.optim._target_=telltale.build,harness.job.methods.optimizers.build"
    command = [sys.executable, "-m", "harness", "sweep", *TINY, "method=full", targets, *overrides]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def search(folder: Path) -> list[Path]:
    """All that was written below `folder`, by a run that had secrets; none may be in it."""
    written = [path for path in folder.rglob("*") if path.is_file() and "lib" not in path.parts]
    for path in written:
        content = path.read_bytes()
        assert b"planted" not in content, path
        assert not [secret for secret in SECRETS.values() if secret.encode() in content], path
    return written


def test_a_killed_sweep_leaves_no_secret(tmp_path):
    run = sweep(tmp_path, HANGING)
    hidden = [f"stdout {HIDDEN}", f"stderr {HIDDEN}"]  # two streams: the log gets their lines at different moments
    started = time.monotonic()
    while not any(all(line in log.read_text() for line in hidden) for log in tmp_path.glob("results/adhoc/*.log")):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() - started < PATIENCE, search(tmp_path)
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    _, words = run.communicate()
    assert "planted" not in words
    assert sum(path.suffix == ".log" for path in search(tmp_path)) == 1


@pytest.mark.parametrize(
    "launcher", [["local_parallel", "hydra.launcher.cells=2"], pytest.param(["submitit_local"], marks=needs_submitit)]
)
def test_launchers_write_no_secret(tmp_path, launcher, tell):
    run = sweep(tmp_path, TELLTALE, f"hydra/launcher={launcher[0]}", *launcher[1:])
    _, words = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1, words
    assert "Done: 1 failed, 1 ok." in words
    assert "planted" not in words
    written = search(tmp_path)
    assert sum(path.suffix == ".json" for path in written) == 3  # two records and the plan
    tell(f"{launcher[0]}: {len(written)} files, no secret.")
