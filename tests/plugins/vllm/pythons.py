"""Pythons of environments of their own, for what runs in another one than the harness."""

from __future__ import annotations

import site
import venv
from pathlib import Path

STAND_IN = Path(__file__).parent / "stand_in"


def make_python(folder: Path, *paths: str | Path) -> str:
    """The python of a new virtual environment in `folder`, which imports from `paths`."""
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "more.pth").write_text("".join(f"{path}\n" for path in paths))
    return str(folder / "bin" / "python")


def python_with_vllm(folder: Path) -> str:
    """One with the stand-in for vllm, and with this environment's libraries, which it uses."""
    return make_python(folder, STAND_IN, *site.getsitepackages())
