"""A fixture by which each test begins with an empty cache of requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.job.evaluate import request_cache


@pytest.fixture(autouse=True)
def cached_requests(monkeypatch, tmp_path_factory) -> Path:
    """The folder of cached requests, which is not there yet."""
    folder = tmp_path_factory.mktemp("cache") / "requests"
    monkeypatch.setattr(request_cache, "folder", lambda: folder)
    return folder
