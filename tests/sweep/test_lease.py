"""One process runs a cell at a time: leases are exclusive, outlive nobody, and are lost by whoever falls silent.

What happens between processes is tested with processes; one "elsewhere" is told that its machine is another.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from records import make_record

from harness.config import ROOT
from harness.record import Cell
from harness.studies.status import study_status
from harness.sweep import lease
from harness.sweep.lease import Held
from harness.sweep.store import Study

# Signs of life, and looks at them, a hundred times as often as in earnest.
QUICK = {"HEARTBEAT": 0.1, "SILENCE": 1.2, "GLANCE": 0.02}
DAY = 86400


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path, "demo")


@pytest.fixture
def lora():
    return make_record("lora", 16, 32.0, 2e-4).cell


@pytest.fixture
def folder(study, lora):
    """The lease on `lora`."""
    return study.folder / ".harness" / "running" / lora.name


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def process():
    """process(script, *arguments) starts Python on a script that knows `lease`, `Path` and `arguments`."""
    started = []

    def start(script: str, *arguments, elsewhere: bool = False) -> subprocess.Popen:
        lines = ["import os, signal, sys, time", "from pathlib import Path", "from harness.sweep import lease"]
        lines += [f"lease.{name} = {seconds}" for name, seconds in QUICK.items()]
        lines += ["lease._machine = lambda: 'elsewhere'"] * elsewhere
        command = [sys.executable, "-c", "\n".join([*lines, script]), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


HOLDER = """
with lease.hold(Path(sys.argv[1]), "cell") as held:
    held.works(os.getpid(), lambda: print("lost", flush=True))
    print("held", flush=True)
    while not held.lost:
        time.sleep(0.02)
"""


def leave(folder, **fields):
    """A lease as a process of this machine, which is gone by now, would have left it."""
    owner = {"host": os.uname().nodename, "machine": lease._machine(), "pid": dead_process(), "started": 1.0}
    owner |= {"beats": 3, "progress": {}} | fields
    path = folder / "0123456789abcdef.json"
    folder.mkdir(parents=True)
    path.write_text(json.dumps({"processes": {str(owner["pid"]): "1"}} | owner))
    return path


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# One process


def test_a_lease_is_exclusive_while_it_is_held(study, lora):
    with study.lease(lora):
        with pytest.raises(Held, match=rf"{lora.name} is being run by process {os.getpid()} on "), study.lease(lora):
            pass
        with study.lease(make_record("full").cell):
            assert len(study.running()) == 2
        assert list(study.running()) == [lora.name]
    assert study.running() == {}
    with study.lease(lora):
        pass


def test_a_lease_is_released_when_its_cell_breaks(study, lora, folder):
    with pytest.raises(KeyboardInterrupt), study.lease(lora):
        raise KeyboardInterrupt
    assert list(folder.parent.iterdir()) == []


def test_a_lease_notes_progress(study, lora):
    with study.lease(lora) as note:
        started = study.running()[lora.name]["started"]
        note({"phase": "train", "step": 3})
        owner = study.running()[lora.name]
        assert owner["progress"] == {"phase": "train", "step": 3}
        assert (owner["started"], owner["pid"]) == (started, os.getpid())


def test_a_long_note_is_followed_by_a_short_one(study, lora):
    with study.lease(lora) as note:
        for progress in ({"phase": "x" * 2 * lease.SIZE}, {"phase": "train"}):
            note(progress)
            assert study.running()[lora.name]["progress"] == progress


def test_signs_of_life_come_without_progress(quick, study, lora, folder):
    with study.lease(lora):
        (path,) = folder.iterdir()
        before = json.loads(path.read_text())["beats"]
        time.sleep(5 * lease.HEARTBEAT)
        assert json.loads(path.read_text())["beats"] > before


# Owners that are gone


def test_the_lease_of_a_process_that_was_killed_is_taken_over_at_once(study, lora, folder, process):
    owner = process(HOLDER, folder)
    assert owner.stdout.readline() == "held\n"
    assert study.running()[lora.name]["pid"] == owner.pid
    with pytest.raises(Held, match=f"process {owner.pid} on"), study.lease(lora):
        pass
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # a corpse that nobody has taken away yet
    assert study.running() == {}
    with study.lease(lora):
        assert study.running()[lora.name]["pid"] == os.getpid()


def test_a_lease_lives_as_long_as_what_works_for_it(study, lora, folder):
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    gone = str(dead_process())
    leave(folder, processes={gone: "1", str(worker.pid): lease._born(worker.pid)})
    with pytest.raises(Held), study.lease(lora):
        pass
    worker.communicate(b"\n")
    with study.lease(lora):
        pass


def test_another_process_under_the_same_number_is_not_the_owner(study, lora, folder):
    ours, other = str(os.getpid()), str(int(lease._born(os.getpid())) - 1)
    leave(folder, pid=os.getpid(), processes={ours: other})
    assert study.running() == {}
    with study.lease(lora):
        pass


def test_an_owner_on_another_machine_lives_while_it_gives_signs_of_life(quick, study, lora, folder, process):
    owner = process(HOLDER, folder, elsewhere=True)
    assert owner.stdout.readline() == "held\n"
    (path,) = folder.iterdir()
    with pytest.raises(Held, match=rf"{lora.name} is being run by process {owner.pid} on "), study.lease(lora):
        pass
    assert study.is_running(lora.name)
    assert path.exists()
    owner.kill()
    assert lora.name in study.running()  # for all that is known here
    with study.lease(lora):
        assert study.running()[lora.name]["pid"] == os.getpid()
    assert not study.is_running(lora.name)


@pytest.mark.parametrize(
    "fields",
    [{"started": "soon"}, {"started": 10**400}, {"started": float("nan")}, {"host": 3}, {"processes": {"x": None}}],
)
def test_a_lease_with_a_value_that_nobody_writes_is_held_by_nobody_known(study, lora, folder, fields):
    leave(folder, machine="elsewhere", **fields)
    assert study.running() == {}
    assert [cell.state for cell in study_status(study.folder.parent, study.name).cells] == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 5000])
def test_a_lease_that_says_nothing_is_held_by_nobody_known(quick, study, lora, folder, text):
    leave(folder).write_text(text)
    assert study.running() == {}
    begun = time.monotonic()
    with study.lease(lora):  # it may have been about to say something, but not for so long
        assert time.monotonic() - begun >= lease.SILENCE


def test_an_empty_folder_is_no_lease(study, lora, folder):
    folder.mkdir(parents=True)
    assert study.running() == {}
    assert study.wait([lora]) == [lora]
    with study.lease(lora):
        assert list(study.running()) == [lora.name]


# Owners on other machines


@pytest.mark.parametrize("clock", [-DAY, 0, DAY], ids=["behind", "alike", "ahead"])
def test_a_silent_owner_elsewhere_is_taken_over_whatever_its_clock_says(quick, study, lora, folder, clock):
    path = leave(folder, machine="elsewhere", started=time.time() + clock)
    os.utime(path, (time.time() + clock, time.time() + clock))
    full = make_record("full").cell
    leave(study.folder / ".harness" / "running" / full.name, pid=os.getpid(), processes=lease_of_ours())
    begun = time.monotonic()
    assert study.wait([lora, full]) == [lora]
    assert time.monotonic() - begun >= lease.SILENCE
    with study.lease(lora):
        assert study.running()[lora.name]["pid"] == os.getpid()


def lease_of_ours():
    return {str(os.getpid()): lease._born(os.getpid())}


@pytest.mark.long
@pytest.mark.parametrize("clock", [-DAY, DAY], ids=["back", "on"])
def test_a_live_owner_is_waited_for_whatever_the_clocks_say(quick, folder, process, clock):
    owner = process(HOLDER, folder, elsewhere=True)
    assert owner.stdout.readline() == "held\n"
    free = []
    waiting = threading.Thread(target=lambda: free.extend(lease.wait([folder])), daemon=True)
    waiting.start()
    for _ in range(10):  # as if its clock, or the file server's, were set
        time.sleep(lease.SILENCE / 4)
        (path,) = folder.iterdir()
        os.utime(path, (time.time() + clock, time.time() + clock))
    assert waiting.is_alive()
    owner.kill()
    waiting.join(5 * lease.SILENCE)
    assert free == [folder]


@pytest.mark.long
def test_an_owner_here_that_sleeps_is_not_dead(quick, folder, process):
    owner = process(HOLDER, folder)
    assert owner.stdout.readline() == "held\n"
    owner.send_signal(signal.SIGSTOP)
    free = []
    waiting = threading.Thread(target=lambda: free.extend(lease.wait([folder])), daemon=True)
    waiting.start()
    waiting.join(2 * lease.SILENCE)
    assert waiting.is_alive()
    owner.kill()
    waiting.join(5)
    assert free == [folder]


def test_an_owner_that_wakes_up_has_lost_its_lease(quick, folder, process):
    owner = process(HOLDER, folder, elsewhere=True)
    assert owner.stdout.readline() == "held\n"
    owner.send_signal(signal.SIGSTOP)
    assert lease.wait([folder]) == [folder]
    with lease.hold(folder, "cell") as ours:
        owner.send_signal(signal.SIGCONT)
        assert owner.stdout.readline() == "lost\n"
        assert owner.wait(10) == 0
        time.sleep(2 * lease.HEARTBEAT)
        assert not ours.lost
        assert lease.owner(folder)["pid"] == os.getpid()
    assert not folder.exists()


# Several at once

RACE = """
leases, counters = Path(sys.argv[1]), Path(sys.argv[2])
while not (counters / "go").exists():
    time.sleep(0.001)
for i in range(int(sys.argv[3])):
    with lease.hold(leases / str(i), "cell", patiently=True):
        counter = counters / str(i)
        count = int(counter.read_text()) if counter.exists() else 0
        time.sleep(0.001)
        counter.write_text(str(count + 1))
"""


@pytest.mark.long
def test_of_several_simultaneous_take_overs_one_wins(tmp_path, process):
    """Each is in each lease once, alone: an update of its counter that met another would be lost."""
    leases, counters, rounds = tmp_path / "leases", tmp_path / "counters", 12
    counters.mkdir()
    for i in range(rounds):
        elsewhere = {"machine": "elsewhere"} if i % 4 == 3 else {}  # the others are known to be dead
        leave(leases / str(i), **elsewhere)
    racers = [process(RACE, leases, counters, rounds) for _ in range(5)]
    (counters / "go").touch()
    assert [racer.wait(60) for racer in racers] == [0] * 5
    assert [int((counters / str(i)).read_text()) for i in range(rounds)] == [5] * rounds
    assert list(leases.iterdir()) == []


PLAN = """
from harness.record import Cell
from harness.settings import Settings
from harness.sweep.store import Study
for i in range(5):
    name = f"{sys.argv[2]}-{i}"
    Study(Path(sys.argv[1]), "demo").plan([Cell(name, name, "lora", "tiny", "facts", 8, 16.0, 1e-3, 0, {}, Settings())])
"""


def test_plans_that_are_made_at_once_add_up(study, tmp_path, process):
    planners = [process(PLAN, tmp_path, i) for i in range(4)]
    assert [planner.wait(60) for planner in planners] == [0] * 4
    planned = study.planned()
    assert all(isinstance(cell, Cell) for cell in planned)
    assert sorted(cell.name for cell in planned) == sorted(f"{i}-{j}" for i in range(4) for j in range(5))


def test_a_study_that_can_not_be_written_to_is_named(tmp_path, lora):
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(NotADirectoryError) as refused, Study(tmp_path, "demo").lease(lora):
        pass
    assert str(tmp_path / "demo") in refused.value.filename
