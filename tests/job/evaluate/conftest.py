"""Each test begins with an empty cache of requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.job.evaluate import request_cache


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """The folder of cached requests."""
    monkeypatch.setattr(request_cache, "folder", lambda: tmp_path / "requests")
    return tmp_path / "requests"
