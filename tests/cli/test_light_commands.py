"""What only reads records or prints help imports no library of models: it answers at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.config import ROOT

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
