"""Where cells run: the launchers that a sweep can be given, and what is said where one can't be had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import launched
import pytest
from command_line import called, forbid_jobs
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext

from harness.config import CONF, ROOT
from harness.errors import UserError
from harness.sweep import app
from harness.sweep.launchers import places as places_here
from harness.sweep.launchers.local_parallel import LocalParallel
from harness.sweep.launchers.lost_workers import Lost
from harness.sweep.launchers.places import places


def launch(folder: Path, task, points: list[list[str]], **settings) -> list:
    """What each of `points` came to when a local_parallel launcher with `settings` had workers do `task` on it."""
    app.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"results_dir={folder}"], return_hydra_config=True)
        config.hydra.job.config_name = "config"
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
        launcher = LocalParallel(**settings)
        launcher.setup(hydra_context=context, task_function=task, config=config)
        points = [[f"results_dir={folder}", *point] for point in points]
        return [job.return_value for job in launcher.launch(points, initial_job_idx=0)]


@pytest.fixture(autouse=True)
def workers_know_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that seems to have them; no test here computes on one."""
    monkeypatch.setattr(places_here, "gpus", lambda: ["0", "1"])


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(places_here, "gpus", list)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(places_here, "cores", lambda: 8)


# --- places


def test_a_cell_has_a_gpu_of_its_own(two_gpus):
    assert places(None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert places(1) == [{"CUDA_VISIBLE_DEVICES": "0"}]
    with pytest.raises(UserError, match=r"hydra.launcher.cells must be at most 2, got 3: .* there are 2"):
        places(3)


def test_a_cell_has_as_many_gpus_as_it_asks_for(monkeypatch):
    monkeypatch.setattr(places_here, "gpus", lambda: ["4", "5", "6", "7", "8"])
    assert places(None, 2) == [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
    assert places(1, 5) == [{"CUDA_VISIBLE_DEVICES": "4,5,6,7,8"}]
    with pytest.raises(UserError, match=r"must be at most 2, got 3: .* are 5, 2 of them for a cell"):
        places(3, 2)
    with pytest.raises(UserError, match=r"train.devices must be at most 5, the GPUs of this machine, got 6"):
        places(None, 6)


def test_on_a_cpu_cells_run_one_at_a_time_unless_told_and_then_share_the_cores(no_gpu, monkeypatch):
    assert places(None) == places(1) == [{}]
    assert places(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert places(16) == [{"OMP_NUM_THREADS": "1"}] * 16
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert places(2) == [{"OMP_NUM_THREADS": "3"}] * 2, "what the user set is left"


@pytest.mark.parametrize("cells", [0, -1, 1.5, "all"])
def test_a_number_of_cells_that_can_not_be(cells):
    with pytest.raises(UserError, match=r"hydra\.launcher\.cells .* got "):
        places(cells)


def test_without_a_gpu_what_cuda_may_see_is_no_place(monkeypatch):
    if places_here.gpus():
        pytest.skip("there is a GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert places_here.gpus() == []


# --- workers


@pytest.mark.long
def test_each_place_runs_one_after_another_and_answers_come_in_order(tmp_path, no_gpu, capsys):
    points = [[f"seed={seed}"] for seed in range(5)]
    answers = launch(tmp_path, launched.told, points, cells=2)
    assert [seed for seed, *_ in answers] == [0, 1, 2, 3, 4]
    assert len({pid for _, pid, *_ in answers}) == 2
    assert {threads for _, _, threads, _ in answers} == {"4"}
    assert "warning: 2 cells at a time share this CPU" in capsys.readouterr().err


@pytest.mark.long
def test_on_gpus_each_worker_sees_one(tmp_path, two_gpus, capsys):
    answers = launch(tmp_path, launched.told, [["seed=0"], ["seed=1"]])
    assert sorted(gpu for *_, gpu in answers) == ["0", "1"]
    assert "warning" not in capsys.readouterr().err


@pytest.mark.long
def test_gpus_are_dealt_out_to_cells_of_several_and_of_one(tmp_path, two_gpus):
    points = [["seed=0", "train.devices=1"], ["seed=1", "train.devices=2"], ["seed=2", "train.devices=1"]]
    points.append(["seed=3", "train.devices=2", "method=base"])  # an untuned row has no use for two
    answers = launch(tmp_path, launched.told, points)
    assert [seed for seed, *_ in answers] == [0, 1, 2, 3]
    gpus = [gpu for *_, gpu in answers]
    assert gpus[1] == "0,1"
    assert {gpus[0], gpus[2], gpus[3]} <= {"0", "1"}


@pytest.mark.long
def test_a_lost_worker_is_an_answer_and_the_others_go_on(tmp_path, no_gpu):
    answers = launch(tmp_path, launched.lost_at_1, [[f"seed={seed}"] for seed in range(4)], cells=1)
    assert (answers[0], *answers[2:]) == (0, 2, 3)
    assert isinstance(answers[1], Lost)
    assert answers[1].why == "was killed by SIGKILL; its output is in parallel-0.log"


SWEEP = "import sys; from pathlib import Path; import launched, test_launchers as t; t.launch(Path(sys.argv[1]), "
SWEEP += "launched.slow, [['seed=0'], ['seed=1'], ['seed=2']], cells=2)"


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_sweep_in_order(tmp_path, sent):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))}
    sweep = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    pids = wait_for(lambda: len(notes(tmp_path)) == 2 and notes(tmp_path))
    sweep.send_signal(sent)
    _, err = sweep.communicate(timeout=30)
    assert "KeyboardInterrupt" in err or sent == signal.SIGKILL
    wait_for(lambda: not notes(tmp_path))
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids))


def notes(folder: Path) -> list[int]:
    """Process ids of the workers that are at `launched.slow`."""
    found = []
    for path in folder.glob("*.pid"):
        with suppress(FileNotFoundError):  # it may have left since it was listed
            found += map(int, path.read_text().split())
    return found


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


# --- what can't be


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "plugin", "needed"),
    [
        ("slurm", "submitit", "hydra/launcher=submitit_slurm needs the extra `slurm`: pip install -e '.[slurm]'"),
        ("submitit_local", "submitit", "hydra/launcher=submitit_local needs the extra `slurm`"),
        ("ray_cluster", "ray", "hydra/launcher=ray needs the extra `ray`: pip install -e '.[ray]'"),
    ],
)
def test_a_launcher_without_its_extra_says_what_to_install(harness, launcher, plugin, needed):
    if find_spec(plugin):
        pytest.skip("the extra is installed")
    run = harness("sweep", "quickstart", f"hydra/launcher={launcher}")
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {needed}")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.long
def test_more_cells_than_can_be_is_one_sentence(harness):
    run = harness("sweep", "quickstart", "hydra/launcher=local_parallel", "hydra.launcher.cells=0")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: hydra.launcher.cells must be a positive number, got 0.\n"


def test_drift_is_refused_where_cells_share_a_machine(tmp_path, monkeypatch, no_gpu):
    """Its repeats would run beside other cells, and the first of them while its own cell runs."""
    forbid_jobs(monkeypatch)
    parallel = ("sweep", "method=lora,full", "model=tiny", "--drift=2", "hydra/launcher=local_parallel")
    refused = called(tmp_path, *parallel, "hydra.launcher.cells=2")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: --drift requires one cell at a time, got 2: ")
    with pytest.raises(AssertionError, match="a job was started"):
        called(tmp_path, *parallel)
