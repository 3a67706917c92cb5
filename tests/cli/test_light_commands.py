"""What only reads records or prints help imports no library of models: it answers at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import called

from harness.config import ROOT
from harness.sweep import runner
from harness.sweep.app import point
from harness.sweep.fork_server import Server

CODE = """
import sys
from harness.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(sorted({"torch", "transformers", "peft", "lm_eval", "datasets"} & sys.modules.keys()), file=sys.stderr)
"""
REFERENCE = f"--study quickstart --results-dir {ROOT / 'results' / 'reference'}"


@pytest.mark.parametrize(
    "command", ["--help", "run --help", "plan --help", f"status {REFERENCE}", f"table {REFERENCE}", f"lint {REFERENCE}"]
)
def test_no_library_of_models_is_imported(command):
    run = subprocess.run([sys.executable, "-c", CODE, *command.split()], capture_output=True, text=True, cwd=ROOT)
    assert run.stderr.splitlines()[-1:] == ["[]"], run.stderr


@pytest.mark.parametrize(
    ("command", "begun"), [("plan", ["harness.job.predict.workers", "composed"]), ("run", ["composed"])]
)
def test_a_plan_has_libraries_imported_before_it_composes(monkeypatch, tmp_path, command, begun):
    order = []

    def composed(*_: object) -> None:
        order.append("composed")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_server", Server())
    monkeypatch.setattr(Server, "prepare", lambda self, libraries: order.append(libraries))
    monkeypatch.setattr(point.cells_of, "from_config", composed)
    assert called(tmp_path, command, "model=tiny", "method=lora").returncode == 130
    assert order == begun
    order.clear()
    assert called(tmp_path, command, "model=tiny", "method=lora", "--cfg", "job").returncode == 0
    assert order == []  # nothing is run
