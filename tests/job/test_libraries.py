"""Imports of a job's libraries: what they leave out, and that all is there when it is called."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import pytest
import torch

from harness.config import ROOT
from harness.job import libraries

LOADED = """
import json, sys
from harness.job import libraries
libraries.load(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(module: str) -> set[str]:
    """The modules that are there after the libraries of `module` were loaded in a process of their own."""
    command = [sys.executable, "-c", LOADED, module]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_imports_no_compiler_and_no_tables():
    modules = loaded_by("harness.job.predict.workers")
    assert {"torch", "peft", "bitsandbytes"} <= modules
    assert not {"torch._inductor.compile_fx", "networkx", "datasets", "pandas", "pyarrow", "lm_eval"} & modules


@pytest.mark.long
@pytest.mark.slow
def test_a_cell_finds_what_it_needs_in_the_server_and_nothing_that_few_need():
    modules = loaded_by("harness.job.run_cell")
    assert {"torch", "peft", "bitsandbytes", "datasets", "pandas", "lm_eval"} <= modules
    assert not {"torch._inductor.compile_fx", "nltk", "matplotlib"} & modules


def test_garbage_is_not_looked_for_during_imports_alone():
    def failing_import():
        assert not gc.isenabled()
        raise ImportError

    with pytest.raises(ImportError), libraries.uncollected():
        failing_import()
    gc.unfreeze()
    assert gc.isenabled()


def test_what_was_imported_is_never_gone_through():
    imported = []
    with libraries.uncollected():
        imported.append([[] for _ in range(1000)])
    try:
        tracked = {id(item) for item in gc.get_objects()}
        assert not any(id(item) in tracked for item in imported[0])
    finally:
        gc.unfreeze()  # what tests made before is looked through again


def test_a_function_is_compiled_when_it_is_called():
    compiled = []

    def compile_now(model, **options):
        compiled.append(options)
        return torch.compile(model, **options)

    later = libraries._compiled_when_called(compile_now)

    @later(backend="eager", dynamic=False)
    def doubled(numbers):
        return 2 * numbers

    assert (doubled.__name__, compiled) == ("doubled", [])
    assert [doubled(torch.ones(2)).tolist() for _ in range(2)] == [[2, 2], [2, 2]]
    assert later(lambda numbers: numbers + 1, backend="eager")(torch.ones(1)).tolist() == [2]
    assert compiled == [{"backend": "eager", "dynamic": False}, {"backend": "eager"}]


def test_a_module_is_compiled_at_once():
    modules = []
    later = libraries._compiled_when_called(lambda model, **options: modules.append(model) or model)
    layer = torch.nn.Linear(1, 1)
    assert later(layer) is layer
    assert modules == [layer]
