"""A model that was written as GGUF is the base of a cell, and scores as the folder that it was written from."""

from __future__ import annotations

import pytest
from job_helpers import run_tiny
from transformers import AutoConfig, AutoTokenizer

from harness.job.models import embedded
from harness.plugins.export.job import gguf_file


@pytest.mark.long
def test_a_cell_of_a_gguf_file_agrees_with_that_of_its_folder(tmp_path, monkeypatch):
    folder = embedded.folder("tiny")
    gguf_file.check(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    gguf_file.write(folder, "tiny", tmp_path / "tiny.gguf")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    ours = run_tiny(tmp_path / "a", "method=lora", "model.dtype=float32")
    theirs = run_tiny(tmp_path / "b", "method=lora", "model.dtype=float32", f"model.path={tmp_path / 'tiny.gguf'}")
    assert theirs.status == "ok"
    assert ours.parameters == theirs.parameters
    assert [point.loss for point in theirs.validation] == pytest.approx(
        [point.loss for point in ours.validation], rel=1e-3
    )
