"""Runs a script of tests/fake_cuda, where torch believes that there is a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.config import ROOT

FAKE = Path(__file__).parent / "fake_cuda"


def run_there(script: str, given: str, folder: Path) -> subprocess.CompletedProcess:
    """The script's run with `given` as its input; the hooks are built in `folder`. Skips without a C++ compiler."""
    if shutil.which("g++") is None:
        pytest.skip("it takes a C++ compiler to build the hooks")
    libraries = Path(torch.__file__).parent / "lib"
    hooks = folder / "hooks.so"
    headers = Path(torch.__file__).parent / "include"
    build = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", FAKE / "hooks.cpp", "-o", hooks]
    build += [f"-I{headers}", f"-I{headers}/torch/csrc/api/include", f"-L{libraries}", "-lc10", "-ltorch_cpu"]
    subprocess.run(build, check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(libraries),
        "LD_PRELOAD": str(hooks),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    }
    return subprocess.run([sys.executable, FAKE / script], input=given, env=environment, capture_output=True, text=True)
