"""Every engine loses a worker in the middle of a sweep, and the same command finishes it: nothing lost, nothing twice.

Each on the real thing: processes of this machine, submitit's local executor, a Slurm and a Ray cluster that are
started here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from losing import SWEEP, finished, holds, lose_a_worker, start
from real_sweeps import finish, training, wait_for

from harness.record import read_study
from harness.report.lint import findings
from harness.sweep.launchers import lost_workers

HERE = Path(__file__).parent

pytestmark = [pytest.mark.faults, pytest.mark.slow]

needs_submitit = pytest.mark.skipif(not find_spec("submitit"), reason="the extra `slurm` is not installed")
needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="the extra `ray` is not installed")


# --- this machine


def test_local_parallel(tmp_path):
    holds(tmp_path, "hydra/launcher=local_parallel", "hydra.launcher.cells=3")
    assert "overlap" in {finding.rule for finding in findings(finished(tmp_path))}, "cells that shared the CPU"


def test_local_parallel_stops_cleanly(tmp_path):
    sweep = start(tmp_path, "hydra/launcher=local_parallel", "hydra.launcher.cells=2")
    _, marker = wait_for(lambda: training(tmp_path / "results" / "lossy"), sweep)
    sweep.send_signal(signal.SIGINT)
    status, err = finish(sweep)
    assert status == 130
    assert err.endswith("Interrupted. Finished cells are saved; rerun the same command to resume.\n")
    assert not Path(f"/proc/{marker['pid']}").exists()
    assert not list((tmp_path / "results" / "lossy" / ".harness" / "running").iterdir())
    assert finished(tmp_path) == []


@needs_submitit
def test_submitit_on_this_machine(tmp_path):
    holds(tmp_path, "hydra/launcher=submitit_local")


@needs_submitit
def test_a_cell_at_its_queue_s_time_limit_is_recorded_and_the_others_go_on(tmp_path):
    """By the signal that Slurm sends before it: so short a limit is always reached."""
    limit = ["hydra.launcher.timeout_min=5", "+hydra.launcher.max_num_timeout=0"]
    sweep = start(tmp_path, "hydra/launcher=submitit_local", *limit)
    name, marker = wait_for(lambda: training(tmp_path / "results" / "lossy"), sweep, seconds=240)
    os.kill(marker["pid"], signal.SIGUSR2)
    status, err = finish(sweep)
    assert status == 1
    assert "Done: 1 failed, 2 ok." in err
    assert "Traceback" not in err
    records, _ = read_study(tmp_path / "results" / "lossy")
    (failure,) = [record.failure for record in records if record.cell.name == name]
    assert failure.phase == "train"
    assert failure.reason.startswith("The cell was ended by its queue (Job not requeued because: timed-out too many")


@needs_submitit
@pytest.mark.parametrize(
    ("option", "why"),
    [("--drift", "--drift shows the drift of one machine"), ("--fit", "--fit requires --device CARD")],
)
def test_what_is_of_this_machine_is_refused_for_cells_of_others(tmp_path, option, why):
    status, err = finish(start(tmp_path, "hydra/launcher=submitit_local", option))
    assert (status, err.splitlines()[-1].startswith(f"error: {why}")) == (2, True)


# --- Slurm


def missing() -> str | None:
    """Why no Slurm can be started here."""
    if not find_spec("submitit"):
        return "the extra `slurm` is not installed"
    if wanting := [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name)]:
        return f"{', '.join(wanting)} not found: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons are started as root"


@pytest.fixture(scope="module")
def slurm():
    """A cluster of two nodes; SLURM_CONF leads to it."""
    if why := missing():
        pytest.skip(why)
    folder = tempfile.mkdtemp(prefix="slurm-")
    try:
        subprocess.run([HERE / "slurm.sh", "start", folder], check=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
            yield
    finally:
        subprocess.run([HERE / "slurm.sh", "stop", folder])
        time.sleep(2)  # the daemons write into it until they are gone
        shutil.rmtree(folder, ignore_errors=True)


ON_CPU = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]


def test_slurm(slurm, tmp_path):
    holds(tmp_path, *ON_CPU)


def test_after_ctrl_c_slurm_goes_on(slurm, tmp_path):
    sweep = start(tmp_path, *ON_CPU)
    wait_for(lambda: training(tmp_path / "results" / "lossy"), sweep, seconds=240)
    sweep.send_signal(signal.SIGINT)
    status, err = finish(sweep)
    assert status == 130
    assert "What Slurm holds goes on there; `scancel --name=lossy` ends it." in err
    until = time.monotonic() + 240
    while len(finished(tmp_path)) < 3:
        assert time.monotonic() < until, "waited in vain"
        time.sleep(1)


def test_slurm_gives_a_cell_two_nodes(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # in place of a node's name, as both are this machine
    one = [setting for setting in SWEEP if not setting.startswith(("seed=", "train.max_steps="))]
    sweep = start(tmp_path, *ON_CPU, "train.max_steps=4", "train.nodes=2", sweep=one)
    status, err = finish(sweep)
    assert status == 0, err
    (record,) = finished(tmp_path)
    assert record.cell.settings.train.nodes == 2
    tasks = (tmp_path / "results" / "lossy" / ".harness" / ".submitit").rglob("*_log.out")
    assert {path.name.split("_")[-2] for path in tasks} == {"0", "1"}


def test_what_slurm_refuses_is_one_sentence(slurm, tmp_path):
    status, err = finish(start(tmp_path, *ON_CPU, "hydra.launcher.partition=nowhere"))
    assert status == 2
    assert "invalid partition specified: nowhere" in err.splitlines()[-1]
    assert "Traceback" not in err


# --- Ray


@pytest.fixture(scope="module")
def ray_cluster():
    """The address of a cluster of three nodes, each with a process of its own here and room for one cell.

    Workers run at the priority of other processes: by Ray's default the tests beside them leave them no core.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def on_ray(address: str) -> list[str]:
    given = {"init.address": f"'{address}'", "remote.num_gpus": 0, "remote.num_cpus": 1}
    return ["hydra/launcher=ray_cluster", *(f"hydra.launcher.ray.{key}={value}" for key, value in given.items())]


@needs_ray
def test_ray_gives_a_lost_cell_to_another_worker(ray_cluster, tmp_path):
    status, err, name = lose_a_worker(tmp_path, *on_ray(ray_cluster))
    assert status == 0, err
    assert "Done: 3 ok." in err
    assert name in {record.cell.name for record in finished(tmp_path)}


@needs_ray
def test_a_cell_that_ray_does_not_try_again_is_lost_and_the_others_go_on(ray_cluster, tmp_path):
    holds(tmp_path, *on_ray(ray_cluster), "hydra.launcher.ray.remote.max_retries=0")


@needs_ray
def test_an_error_in_a_task_of_ray_is_named():
    """Its own text begins with the worker's address."""
    from ray.exceptions import RayTaskError

    error = RayTaskError(
        "f", "Traceback …", ModuleNotFoundError("No module named 'harness'"), "ray::f()", 1, "10.0.0.2"
    )

    def get(task):
        raise error

    lost = lost_workers._answers_of_ray(get)(None)
    assert lost.return_value.why == "ended by an error: ModuleNotFoundError: No module named 'harness'"


@needs_ray
def test_a_cluster_without_gpus_is_refused_at_once(ray_cluster, tmp_path):
    on = [part for part in on_ray(ray_cluster) if "num_gpus" not in part]
    status, err = finish(start(tmp_path, *on))
    assert status == 2
    assert err.splitlines()[-1].endswith(
        "num_gpus=1 requires a cluster with GPUs, got 0; on a cluster without GPUs add "
        "hydra.launcher.ray.remote.num_gpus=0."
    )
