"""Fixtures that compose the real configs, as `run` and `sweep` do."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig

from harness.__main__ import main
from harness.config import CONF, ROOT
from harness.record import Cell
from harness.sweep import app
from harness.sweep.app.composing import Composer
from harness.sweep.cells import from_config

SEEN_BY_JOBS = str(Path(__file__).parent / "seen_by_jobs")
sys.path.append(SEEN_BY_JOBS)


@pytest.fixture
def own_precision() -> Iterator[None]:
    """Lets this process train in another precision: accelerate keeps one for a process."""
    from accelerate.state import AcceleratorState  # most tests need no libraries of the job

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    return (yield from nameless())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    return (yield from nameless())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with many slow tests first: when the last file begins, little is left for the other process to do."""
    weights: Counter[Path] = Counter()
    for item in items:
        costly = item.get_closest_marker("slow") or item.get_closest_marker("long")
        weights[item.path] += 20 if costly else 1
    items.sort(key=lambda item: -weights[item.path])


def pytest_collection_finish() -> None:
    """Exempts imported libraries from garbage collection, as the holder of jobs does: every cell collects twice."""
    gc.collect()
    gc.freeze()


def nameless() -> Iterator[None]:
    """Hides the test's name from the environment: with each another one, no holder of jobs would serve two tests."""
    name = os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        return (yield)
    finally:
        if name is not None:
            os.environ["PYTEST_CURRENT_TEST"] = name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what fault tests counted."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports:
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                if name == "told":
                    terminalreporter.write_line(value)


@pytest.fixture(scope="session", autouse=True)
def one_environment() -> Iterator[None]:
    """Gives jobs of all tests one environment, so that one holder forks them: no hub, and modules named in settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [SEEN_BY_JOBS, os.environ.get("PYTHONPATH")])))
        yield


@pytest.fixture(scope="session")
def compose() -> Callable[..., DictConfig]:
    """compose(*overrides, config="config") gives the configuration that a command line means."""
    app.register()

    def in_full(overrides: Sequence[str], config: str, **keywords) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(config, overrides=list(overrides), **keywords)

    @functools.cache
    def composer(config: str) -> Composer:
        return Composer(lambda overrides: in_full(overrides, config))

    def composed(*overrides: str, config: str = "config", **keywords) -> DictConfig:
        return in_full(overrides, config, **keywords) if keywords else composer(config)(overrides)

    return composed


@pytest.fixture(scope="session")
def cell(compose) -> Callable[..., Cell]:
    """cell(*overrides) gives the cell that a command line means."""
    return lambda *overrides, **keywords: from_config(compose(*overrides, **keywords))


@pytest.fixture
def harness(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """harness(*arguments) runs the command line in an empty folder, without the hub, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(*arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        command = [sys.executable, *python, "-m", "harness", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def inside(tmp_path, monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess]:
    """inside(*arguments) is harness(*arguments) in this process, whose jobs need not wait for imports each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # Hydra is handed its own

    def run(*arguments: str) -> subprocess.CompletedProcess:
        capfd.readouterr()
        at_end = signal.getsignal(signal.SIGTERM)
        try:
            status = main([*arguments])
        except SystemExit as ended:  # after --help
            status = ended.code
        finally:
            signal.signal(signal.SIGTERM, at_end)
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status, said.out, said.err)

    return run
