"""What killed processes leave half done: named by `verify`, removed by a sweep, and never taken from the living."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from records import make_record, sound

from harness import record
from harness.__main__ import main
from harness.config import ROOT
from harness.sweep.lease import SILENCE
from harness.sweep.store import Study

WRITING = """
import sys
from pathlib import Path
from harness import record
with record.replacing(Path(sys.argv[1]) / "lora.json") as made:
    made.write_text("{")
    print("writing", flush=True)
    sys.stdin.read()
"""
LEASING = """
import os, signal, sys
from pathlib import Path
from harness.sweep import lease
os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with lease.hold(Path(sys.argv[1]) / ".harness" / "running" / "lora", "lora"):
    pass
"""


@pytest.fixture
def study(tmp_path):
    """A sound study."""
    sound(make_record("full"), tmp_path / "demo")
    return Study(tmp_path, "demo")


def process(script: str, study: Study) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(study.folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_temporary_files_are_removed_only_after_their_process_died(study, tmp_path, capsys):
    writer = process(WRITING, study)
    assert writer.stdout.readline() == "writing\n"
    assert study.left_behind() == []
    study.plan([])
    (made,) = study.folder.glob(".*.tmp")

    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # a corpse that nobody has taken away yet
    assert study.left_behind() == [made]
    assert main(["verify", "--results-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "demo: 1 record, 1 problem\n"
    assert err.startswith(f"error: {made} was left behind by a process that was killed; ")
    assert made.exists()
    study.plan([])
    assert not made.exists()
    assert main(["verify", "--results-dir", str(tmp_path)]) == 0
    writer.communicate()


def test_a_lease_that_was_about_to_be_made_is_no_lease_and_is_removed(study):
    assert process(LEASING, study).wait() == -signal.SIGKILL
    (made,) = study.left_behind()
    assert made.is_dir()
    assert study.running() == {}
    study.plan([make_record("lora").cell])
    assert not made.exists()


@pytest.mark.parametrize("clock", [-86400, 0, 86400], ids=["behind", "alike", "ahead"])
def test_temporary_files_of_another_machine_are_removed_when_a_lease_would_be_lost(study, clock, monkeypatch):
    """By the clock that both files have their times from; this machine's own may say what it likes."""
    made = record.temporary(study.folder / "lora.json")
    made = made.with_name(re.sub(r"\.[0-9a-f]{8}-", ".01234567-", made.name))
    made.touch()
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + clock)
    for age, there in ((SILENCE / 2, True), (2 * SILENCE, False)):
        written = made.stat().st_mtime - age
        os.utime(made, (written, written))
        study.plan([])
        assert made.exists() == there


def test_other_hidden_files_are_nobodys_business(study):
    for name in (".notes.tmp", ".nfs0001", ".lora.json.swp"):
        (study.folder / name).touch()
    assert study.left_behind() == []


def test_rm_removes_what_a_dead_process_left_of_a_cell(study):
    lora = sound(make_record("lora", 16), study.folder)
    left = [record.temporary(study.folder / name) for name in (f"{lora.stem}.items.parquet", "full.json")]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-")) for path in left]
    for path in left:
        path.touch()
    assert main(["rm", lora.stem, "--yes", "--results-dir", str(study.folder.parent)]) == 0
    assert [path.exists() for path in left] == [False, True]
