"""Installed as a wheel of the sdist, `harness` works in any folder, with its own configs and those of the folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from command_line import assert_refused

from harness.config_folders import CONF, ROOT, SWEEPS
from harness.record import read_study

pytestmark = [pytest.mark.slow, pytest.mark.long]

TINY = ["model=tiny", "data=facts", "train.max_steps=1", "train.batch_size=2", "train.validation_items=2"]
TINY += ["eval.tasks=[]", "infer.repeats=0"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """An environment with the wheel of this checkout's sdist, and the libraries of the running one."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("installed")
    for name in ("harness", "conf", "sweeps"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    sdist = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", sdist], cwd=folder / "source", stdout=subprocess.DEVNULL, check=True)
    shutil.rmtree(folder / "source")
    (source,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(build, check=True)
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    install = [
        *pip,
        "--python",
        folder / "venv" / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        wheel,
    ]
    # The checkout itself may be on PYTHONPATH, or among the libraries: pip would take that for what it is to install.
    subprocess.run(install, check=True)
    return folder / "venv"


@pytest.fixture
def harness(installed, tmp_path):
    """harness(*arguments) runs the installed command in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [str(installed / "bin" / "harness"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_a_cell_is_planned_and_run(harness, tmp_path):
    plan = harness("plan", *TINY, "method=lora,full")
    assert (plan.returncode, plan.stderr) == (0, "")
    assert "full" in plan.stdout
    run = harness("run", *TINY, "method=lora", "study=here")
    assert run.returncode == 0, run.stderr
    (record,), problems = read_study(tmp_path / "results" / "here")
    assert (record.status, problems) == ("ok", [])
    assert_refused(harness("logs", "nope").stderr, "`harness status here` lists the cells")


def test_every_config_is_shipped(installed):
    (shipped,) = installed.glob("lib/python*/site-packages/harness/shipped")
    for folder in (CONF, SWEEPS):
        files = {path.relative_to(folder.parent) for path in folder.rglob("*.yaml")}
        assert files == {path.relative_to(shipped) for path in (shipped / folder.name).rglob("*.yaml")}


def test_data_beside_the_code_is_shipped(installed):
    """Templates of problems and tasks among it."""
    (shipped,) = installed.glob("lib/python*/site-packages/harness")
    files = {path.relative_to(ROOT / "harness") for path in (ROOT / "harness").rglob("*.yaml")}
    assert {"one_step.yaml", "words.yaml", "wordmath.yaml"} <= {path.name for path in files}
    assert files <= {path.relative_to(shipped) for path in shipped.rglob("*.yaml")}


def test_what_the_report_page_is_made_of_is_shipped(installed):
    (shipped,) = installed.glob("lib/python*/site-packages/harness/report/pages")
    folder = ROOT / "harness" / "report" / "pages"
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".html", ".css", ".js", ".txt")}
    assert {"plot.umd.min.js", "d3.min.js", "LICENSES.txt"} <= {path.name for path in files}
    assert files <= {path.relative_to(shipped) for path in shipped.rglob("*")}


def test_shipped_sweeps_are_offered(harness):
    assert_refused(harness("sweep", "nope").stderr, *(path.stem for path in SWEEPS.glob("*.yaml")))
    assert "usage: harness table" in harness("table", "--help").stdout


def test_configs_of_the_working_folder_are_found(harness, tmp_path):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "sweeps").mkdir()
    own = (CONF / "method" / "lora.yaml").read_text().replace("name: lora", "name: mine")
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(own)
    (tmp_path / "sweeps" / "own.yaml").write_text("defaults: [config, override method: mine, _self_]\nstudy: own\n")
    shown = harness("sweep", "own", "--cfg", "job")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "name: mine" in shown.stdout
    assert "study: own" in shown.stdout
    assert_refused(harness("run", "method=none").stderr, "mine")

    (tmp_path / "conf" / "method" / "lora.yaml").write_text(own)
    assert_refused(harness("run", "method=lora").stderr, "conf/method/lora.yaml", "another name")


def test_without_configs_one_says_where_they_are(installed, harness):
    (shipped,) = installed.glob("lib/python*/site-packages/harness/shipped")
    shipped.rename(shipped.with_name("hidden"))
    try:
        assert_refused(harness("run").stderr, "config.yaml", "--config-dir")
        shown = harness("run", "--cfg", "job", "--config-dir", str(CONF))
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "name: lora" in shown.stdout
    finally:
        shipped.with_name("hidden").rename(shipped)
