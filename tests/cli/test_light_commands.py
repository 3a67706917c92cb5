"""What only reads records or prints help imports no library of models: it answers at once."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from command_line import called
from hydra._internal.utils import get_args_parser

from harness.__main__ import main
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


def test_hydras_parser_is_made_where_argparse_reads_help_texts_at_once(monkeypatch, tmp_path):
    """Python 3.14 does. One help text of Hydra 1.3's is an object that becomes text when it is printed."""
    plain = argparse.ArgumentParser.add_argument

    def checked(self, *names, **options):
        action = plain(self, *names, **options)
        self._check_help(action)
        return action

    if sys.version_info < (3, 14):
        of_3_14 = argparse._ActionsContainer
        monkeypatch.setattr(of_3_14, "_check_help", lambda _, action: "%" in (action.help or ""), raising=False)
        monkeypatch.setattr(of_3_14, "add_argument", checked)
    with pytest.raises((TypeError, ValueError)):
        get_args_parser()
    shown = called(tmp_path, "run", "model=tiny", "method=lora", "--cfg", "job")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "method:" in shown.stdout
    with pytest.raises((TypeError, ValueError)):  # other parsers are checked as before
        get_args_parser()


def test_windows_is_told_where_the_harness_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["table"]) == 2
    assert capsys.readouterr().err == (
        "error: The harness runs on Linux: on Windows install it in WSL2 (docs/install.md).\n"
    )
