"""Who may import whom: the directions that keep the rooms of the package apart, read from the source itself."""

from __future__ import annotations

import ast
import re
import sys
import time

import pytest

from harness.config import CONF, ROOT

PACKAGE = ROOT / "harness"
FILES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
HEAVY = {"torch", "transformers", "peft", "lm_eval", "accelerate", "datasets", "bitsandbytes", "galore_torch"}


def imports(tree):
    """All modules that `tree` imports, anywhere in it, dotted; ``from a import b`` counts as a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would slip past these rules"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(tree):
    return {name.partition(".")[0] for name in imports(tree)}


def importers(package):
    return {path for path, tree in FILES.items() if package in packages(tree)}


def within(room):
    files = {path: tree for path, tree in FILES.items() if path.startswith(f"{room}/")}
    assert files, f"there is no {room}/; this test would hold anything"
    return files.items()


def test_the_record_imports_the_standard_library_alone():
    assert packages(FILES["record.py"]) <= sys.stdlib_module_names


@pytest.mark.parametrize("room", ["sweep", "report"])
def test_sweep_and_report_import_no_model_library(room):
    for path, tree in within(room):
        assert not packages(tree) & HEAVY, path


def test_shared_files_import_no_model_library():
    for path, tree in FILES.items():
        if "/" not in path:
            assert not packages(tree) & HEAVY, path


def test_the_report_knows_neither_jobs_nor_sweeps():
    for path, tree in within("report"):
        assert not [m for m in imports(tree) if re.match(r"harness\.(job|sweep)\b", m)], path


def test_jobs_know_neither_sweeps_nor_reports_and_sweeps_no_jobs():
    for path, tree in within("job"):
        assert not [m for m in imports(tree) if re.match(r"harness\.(report|sweep)\b", m)], path
    for path, tree in within("sweep"):
        assert not [m for m in imports(tree) if re.match(r"harness\.(report|job)\b", m)], path


def test_only_scoring_imports_lm_eval():
    assert importers("lm_eval") == {"job/score.py", "job/engine.py", "job/vllm_engine.py", "job/api_engine.py"}


def test_only_the_entry_and_the_slots_import_hydra():
    slots = importers("hydra") - {"sweep/app.py", "sweep/parallel.py", "sweep/lost.py"}  # the entry, its launchers
    assert slots <= {"job/model.py", "job/data.py", "job/run.py", "job/plan.py"}
    for path in slots:
        used = {name for name in imports(FILES[path]) if re.match(r"hydra(\.\w+){2}|hydra$", name)}
        assert "hydra.utils.instantiate" in used, path
        assert used <= {"hydra.utils.instantiate", "hydra.errors.InstantiationException"}, path


def test_the_training_loop_names_no_method():
    methods = {path.stem for path in (CONF / "method").glob("*.yaml")}
    assert "lora" in methods
    tree = FILES["job/train.py"]
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    said = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            said |= set(re.findall(r"\w+", node.value))
        for name in ("id", "attr", "arg", "name"):
            said |= set(re.split(r"_", getattr(node, name, None) or "")) | {getattr(node, name, None)}
    assert "model" in said, "nothing was read"
    assert not methods & said


def test_help_comes_at_once_and_loads_nothing_heavy(harness):
    start = time.monotonic()
    run = harness("table", "--help", python=("-X", "importtime"))
    assert run.returncode == 0
    assert time.monotonic() - start < 1
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    assert "argparse" in loaded, "nothing was traced"
    assert not loaded & (HEAVY | {"pandas", "numpy", "hydra", "omegaconf"})
