"""Whatever happens to a cell's process, a record is left and the sweep goes on: killed, diverged, out of memory.

Real jobs on the `tiny` model; a few sweeps are run and looked at many times. Only what is done to the sweep's own
process needs one of its own, whose jobs cost their imports.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal

import pytest
from command_line import called
from real_sweeps import TINY, finish, jobs_of, start, training, wait_for

from harness.record import read_study
from harness.sweep.fork_server import environment

pytestmark = pytest.mark.slow


# --- one sweep: eight points, four cells, of which one is fine, one diverges and two break


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


GRID = [
    "sweep",
    *TINY,
    "study=grid",
    "method=full",
    "rank=8,64",
    "lr=2e-5,1e30",
    "method.optim.optimizer._target_=torch.optim.AdamW,torch.optim.NoSuch",
    "train.max_steps=4",
]


@pytest.fixture(scope="module")
def swept(folder):
    """Exit status and standard error of the sweep, and its records by (rate, optimizer)."""
    done = called(folder, *GRID)
    records, problems = read_study(folder / "results" / "grid")
    assert problems == []

    def key(record):
        optimizer = record.cell.settings.method.optim["optimizer"]["_target_"]
        return record.cell.lr, optimizer.rpartition(".")[2]

    return done.returncode, done.stderr, {key(record): record for record in records}


def test_equal_points_are_run_once(swept):
    _, err, records = swept
    assert "grid: 4 cells (8 points of the grid, equal ones run once), 0 recorded, 4 to run." in err
    assert len(records) == 4
    assert err.count(" in ") == 4


def test_a_sweep_with_a_failed_cell_goes_on_and_says_so(swept):
    status, err, records = swept
    assert status == 1
    assert "Done: 1 diverged, 2 failed, 1 ok." in err
    assert "Traceback" not in err
    assert records[2e-5, "AdamW"].status == "ok"


def test_a_cell_that_is_fine_has_it_all(swept, folder):
    record = swept[2][2e-5, "AdamW"]
    assert record.failure is None
    assert list(record.phases) == ["load", "probe", "train", "merge", "serve", "score"]
    assert record.train.steps == 4
    assert len(record.validation) == 1
    assert {score.n for score in record.scores} == {1}
    assert (folder / "results" / "grid" / f"{record.cell.name}.items.parquet").exists()
    assert record.environment["versions"]["torch"]
    given = environment()  # to jobs of this process, which has what the sweep's had
    assert record.environment["allocator"].items() >= {(n, given[n]) for n in ("OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF")}


def test_a_cell_that_diverges_says_at_which_step(swept):
    record = swept[2][1e30, "AdamW"]
    assert record.status == "diverged"
    assert record.failure.phase == "train"
    assert 1 < record.failure.step <= 4, "the first loss is taken before the first step"
    assert "nan" in record.failure.reason or "inf" in record.failure.reason
    assert record.scores == []


def test_a_cell_that_raises_says_where_and_why(swept, folder):
    record = swept[2][2e-5, "NoSuch"]
    assert record.status == "failed"
    assert (record.failure.phase, record.failure.step) == ("probe", None)
    assert "NoSuch" in record.failure.reason
    assert "\n" not in record.failure.reason
    assert "Traceback" in (folder / "results" / "grid" / f"{record.cell.name}.log").read_text()


def computed():
    """Seconds of a processor that the processes which this one has waited for have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_recorded_cells_are_not_run_again(swept, folder):
    before = computed()
    status, err = finish(start(folder, *GRID, "retry.statuses=[]", python=("-X", "importtime")))
    assert computed() - before < 5  # seconds of a processor, which other tests beside this one hardly change
    assert status == 0
    assert "4 recorded, 0 to run." in err
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines()}
    assert "hydra" in loaded, "nothing was traced"
    # pandas is there: the answer is told again. What trains and scores is not.
    assert not loaded & {"torch", "transformers", "peft", "lm_eval"}


def test_one_recorded_cell_is_named_and_not_run_again(swept, folder):
    arguments = ["run", *TINY, "study=grid", "method=full", "lr=2e-5", "train.max_steps=4"]
    done = called(folder, *arguments)
    assert done.returncode == 0
    assert "is recorded in" in done.stderr
    diverged = swept[2][1e30, "AdamW"].cell.name
    done = called(folder, *arguments, "lr=1e30")
    assert done.returncode == 1
    assert f"{diverged} is recorded in" in done.stderr


# --- one sweep of two long cells: the first is killed, the second interrupted


@pytest.mark.long
def test_kill_and_interrupt(tmp_path):
    study = tmp_path / "results" / "long"
    command = ["sweep", *TINY, "study=long", "method=full", "seed=0,1", "train.max_steps=4000", "retry.statuses=[]"]
    sweep = start(tmp_path, *command)
    try:
        first, _ = wait_for(lambda: training(study), sweep)
        (job,) = jobs_of(sweep)
        os.kill(job, signal.SIGKILL)

        # The killed cell leaves a record, and the next one is run.
        second, marker = wait_for(lambda: (found := training(study)) and found[0] != first and found, sweep)
        assert marker["pid"] == sweep.pid
        (record,), _ = read_study(study)
        assert (record.cell.name, record.status) == (first, "failed")
        assert record.failure.phase == "train"
        assert 1 <= record.failure.step < 4000
        assert "SIGKILL" in record.failure.reason
        assert f"{first}.log" in record.failure.reason
        assert (study / f"{first}.log").exists()
        assert record.environment["versions"]["torch"]

        # The interrupted cell leaves none, nor a marker, nor a process.
        (job,) = jobs_of(sweep)
        sweep.send_signal(signal.SIGINT)
        status, err = finish(sweep)
        assert status == 130
        assert err.splitlines()[-1].startswith("Interrupted.")
        assert "Traceback" not in err
        assert [r.cell.name for r in read_study(study)[0]] == [first]
        assert list((study / ".harness" / "running").iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.kill(job, 0)
    finally:
        sweep.kill()

    # The same command goes on with the interrupted cell; so much of it is enough to see.
    again = start(tmp_path, *command)
    try:
        lines = list(itertools.islice((line for line in again.stderr if not line.startswith("warning: ")), 2))
        assert lines == ["long: 2 cells, 1 recorded, 1 to run.\n", f"[1/1] {second}\n"]
        (job,) = wait_for(lambda: jobs_of(again), again)
        again.send_signal(signal.SIGTERM)  # what a cluster sends
        assert finish(again)[0] == 130
        assert list((study / ".harness" / "running").iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.kill(job, 0)
    finally:
        again.kill()


@pytest.mark.long
def test_out_of_memory_is_told_from_other_failures(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))

    arguments = ["run", *TINY, "study=big", "method=full", "train.max_steps=1", "train.batch_size=40000"]
    status, err = finish(start(tmp_path, *arguments, preexec_fn=limit))
    assert status == 1
    (record,), _ = read_study(tmp_path / "results" / "big")
    assert record.status == "oom", record.failure
    assert record.failure.phase == "probe"
    assert record.failure.reason in err
    assert record.scores == []
