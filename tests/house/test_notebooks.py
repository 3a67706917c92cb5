"""Every notebook runs from top to bottom, and is committed with the outputs that its viewers see."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    committed = [[output["output_type"] for output in cell.get("outputs", [])] for cell in notebook.cells]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path.parent}}).execute()
    assert [[output["output_type"] for output in cell.get("outputs", [])] for cell in notebook.cells] == committed
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_there_are_notebooks():
    named = ["01_comparison", "02_rank_alpha_lr", "03_memory_and_speed", "04_verdicts"]
    assert [path.stem for path in NOTEBOOKS] == named
