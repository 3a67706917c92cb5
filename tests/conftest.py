"""Fixtures that compose the real configs, as `run` and `sweep` do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import hydra
import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig

from harness.config import CONF, ROOT
from harness.record import Cell
from harness.sweep import app
from harness.sweep.cell import from_config


@pytest.fixture(scope="session")
def compose() -> Callable[..., DictConfig]:
    """compose(*overrides, config="config") gives the configuration that a command line means."""
    app.register()

    def composed(*overrides: str, config: str = "config", **keywords) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(config, overrides=list(overrides), **keywords)

    return composed


@pytest.fixture(scope="session")
def cell(compose) -> Callable[..., Cell]:
    """cell(*overrides) gives the cell that a command line means."""
    return lambda *overrides, **keywords: from_config(compose(*overrides, **keywords))


@pytest.fixture
def harness(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """harness(*arguments) runs the command line in an empty folder, without the hub, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        command = [sys.executable, *python, "-m", "harness", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run
