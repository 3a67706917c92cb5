"""Machines that train one cell together: where they meet, which launcher gives them, and two that run one command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from command_line import own_server

from harness import record
from harness.config import CONF, ROOT
from harness.errors import UserError
from harness.protocol import Rendezvous
from harness.sweep import machines
from harness.sweep.launchers.base import CellLauncher
from harness.sweep.launchers.through_hydra import cell_launcher

NAMES = (*machines.VARIABLES, "SLURM_NODEID", "SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_JOB_ID")
SLURM = {"SLURM_NODEID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "12345"}


@pytest.fixture
def given(monkeypatch):
    """given(NAME=value, …) sets these variables and no others of their kind."""

    def given(**values: str) -> None:
        for name in (*NAMES, "SUBMITIT_EXECUTOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    given()
    return given


def test_one_machine_meets_nobody(given):
    given(NODE_RANK="1")
    assert machines.rendezvous(1) is None


def test_machines_meet_where_the_environment_says(given):
    given(NODE_RANK="1", MASTER_ADDR="10.0.0.7", MASTER_PORT="29500")
    assert machines.rendezvous(2) == Rendezvous(2, 1, "10.0.0.7", 29500, 300.0)


def test_machines_of_a_slurm_job_meet_on_its_first(given):
    given(**SLURM)
    assert machines.rendezvous(2) == Rendezvous(2, 1, "gpu07", 22345, 300.0)
    given(**SLURM, MASTER_PORT="29500")
    assert machines.rendezvous(2).port == 29500


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("n1", "n1"),
        ("n03,m1", "n03"),
        ("n[03-05,9],m1", "n03"),
        ("a-b[7]", "a-b7"),
        ("rack[1-2]n[04-08]", "rack1n04"),
        ("gpu[12,14].site", "gpu12.site"),
    ],
)
def test_the_first_host_of_slurms_list(listed, first):
    assert machines.first_host(listed) == first


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"NODE_RANK": "0"},
            "train.nodes=2 requires hydra/launcher=slurm, or the same command on 2 machines with NODE_RANK, "
            "MASTER_ADDR, MASTER_PORT in the environment, got no MASTER_ADDR, MASTER_PORT.",
        ),
        (
            {"NODE_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"},
            "NODE_RANK must be a number from 0 to 1, got 2.",
        ),
        (
            {"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "any"},
            "MASTER_PORT must be a number from 1 to 65535, got any.",
        ),
        (SLURM | {"SLURM_JOB_NUM_NODES": "4"}, "train.nodes must be 4, the nodes of this Slurm job, got 2."),
    ],
)
def test_an_environment_that_does_not_say_where_is_refused(given, values, said):
    given(**values)
    with pytest.raises(UserError) as error:
        machines.rendezvous(2)
    assert str(error.value) == said


def test_a_machine_that_a_cell_of_slurm_does_not_need_is_spare(given):
    assert not machines.spare()
    given(SLURM_NODEID="1")
    assert not machines.spare(), "someone's own srun of several sweeps"
    given(SLURM_NODEID="1", SUBMITIT_EXECUTOR="slurm")
    assert machines.spare()
    given(SLURM_NODEID="0", SUBMITIT_EXECUTOR="slurm")
    assert not machines.spare()


# Launchers


class SlurmLauncher:
    """Named as the one of Hydra's plugin."""


def slurm(nodes: int) -> CellLauncher:
    config = SimpleNamespace(hydra=SimpleNamespace(launcher=SimpleNamespace(nodes=nodes)))
    return cell_launcher(SlurmLauncher(), config, run=None)


def test_slurm_gives_as_many_machines_as_it_is_told():
    slurm(1).require_nodes({1})
    slurm(2).require_nodes({1, 2})  # an untuned row has no use for two
    with pytest.raises(UserError, match=r"^hydra\.launcher\.nodes must be 2, as train\.nodes, got 1; run one sweep"):
        slurm(1).require_nodes({1, 2})
    assert "nodes: ${train.nodes}" in (CONF / "hydra" / "launcher" / "slurm.yaml").read_text()


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=local_parallel"]])
def test_a_launcher_without_machines_is_refused(inside, launcher):
    run = inside("sweep", "model=tiny", "train.nodes=2", *launcher)
    assert (run.returncode, run.stderr.splitlines()[-1]) == (
        2,
        "error: train.nodes=2 requires hydra/launcher=slurm for a sweep; without Slurm, `run` the cell on each "
        "machine.",
    )


# Two machines that run one command


TINY = (
    *("run", "study=two", "model=tiny", "rank=4", "train.precision=fp32", "train.max_steps=2", "train.batch_size=4"),
    *("train.validation_items=4", "+data.load.train=64", "+data.load.validation=8", "infer.repeats=0", "eval.tasks=[]"),
    *("train.nodes=2", "method.optim._target_=harm.build"),
)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return str(found.getsockname()[1])


def meeting(number: int, port: str) -> dict[str, str]:
    return {"NODE_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.mark.long
@pytest.mark.slow
def test_both_machines_try_again_with_less_after_a_shortage_on_one(tmp_path):
    port, path = free_port(), os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "harness", *TINY, "+method.optim.harm=hungry", "retry.on_oom=true"]
    both = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | meeting(number, port) | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        first, other = [(each.communicate(timeout=240)[1], each.returncode) for each in both]
    finally:
        for each in both:
            each.kill()
    assert (first[1], other[1]) == (0, 0), first[0] + other[0]
    (found,), problems = record.read_study(tmp_path / "results" / "two")
    assert (found.status, problems) == ("ok", [])
    assert found.cell.settings.train.nodes == 2
    assert (found.smaller_batches.batch_size, found.smaller_batches.grad_accum) == (2, 2)
    assert "out of memory" in first[0]
    assert not list((tmp_path / "results" / "two" / ".harness" / "running").iterdir())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_machine_that_stays_alone_is_refused_and_leaves_nothing(inside, tmp_path, monkeypatch, given, number):
    port = free_port()
    given(**meeting(number, port))
    monkeypatch.setattr(machines, "SECONDS", 2.0)
    with own_server():
        run = inside(*(setting for setting in TINY if "harm" not in setting))
    said = {
        0: f"train.nodes=2 requires 2 machines, but within 2 seconds 1 did not join at 127.0.0.1:{port} (NODE_RANK).",
        1: f"Machine 1 found none at 127.0.0.1:{port} within 2 seconds: the first machine (NODE_RANK=0) must run the "
        "same command.",
    }[number]
    assert (run.returncode, run.stderr.splitlines()[-1]) == (2, f"error: {said}")
    assert not list(tmp_path.glob("results/two/*.json"))
    assert not list(tmp_path.glob("results/two/.harness/running/*"))
