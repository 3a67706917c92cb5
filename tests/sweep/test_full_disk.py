"""A full disk and a read-only folder: what was there stays whole, and one sentence says which file and what to do.

The disks are real ones of a few pages, mounted below the test's own folder; where that is not allowed (it takes root)
the tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from records import make_record, sound

from harness.__main__ import main
from harness.record import read, write
from harness.studies import verify
from harness.sweep.store import Study

PAGE = 4096
TINY = ["model=tiny", "data=facts", "method=full", "train.max_steps=1", "train.batch_size=2", "train.max_length=128"]
TINY += ["train.validation_items=2", "eval.tasks=[]", "infer.repeats=0"]


@pytest.fixture
def disk(tmp_path):
    """disk(pages) gives the folder of a new, empty disk of so many pages."""
    mounted = []

    def mount(pages: int):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        if shutil.which("mount") is None:
            pytest.skip("there is no mount")
        options = f"size={pages * PAGE}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:  # lazily: a job that was refused may still be about to close its log
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder, leave=0):
    """Take all of the disk but `leave` pages."""
    with open(folder / "filling", "wb", buffering=0) as file:
        try:
            while file.write(bytes(PAGE)) == PAGE:
                pass
        except OSError:
            pass
        file.truncate(file.tell() // PAGE * PAGE - leave * PAGE)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_sentence(err, *parts):
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    assert all(part in line for part in parts), line


def test_a_record_that_does_not_fit_leaves_the_old_one(disk):
    folder = disk(8)
    record = make_record("lora", 16, 32.0, 2e-4)
    path = folder / "lora.json"
    write(record, path)
    before = read(path)
    fill(folder, leave=1)
    record.environment = {"words": "x" * 2 * PAGE}
    with pytest.raises(OSError, match="No space left on device") as full:
        write(record, path)
    assert full.value.filename == str(path)
    assert read(path) == before
    assert sorted(p.name for p in folder.iterdir()) == ["filling", "lora.json"]


def test_a_lease_is_kept_alive_on_a_full_disk_and_none_is_made_there(disk):
    study = Study(disk(8), "demo")
    lora, full = make_record("lora", 16).cell, make_record("full").cell
    with study.lease(lora) as lease:
        fill(study.folder)
        lease({"phase": "train", "step": 7})
        assert study.running()[lora.name]["progress"] == {"phase": "train", "step": 7}
        with pytest.raises(OSError, match="No space left on device") as refused, study.lease(full):
            pass
        assert full.name in refused.value.filename
        assert list(study.running()) == [lora.name]
    assert study.running() == {}


def test_a_merge_that_runs_out_of_disk_goes_on_when_there_is_room(disk, tmp_path, capsys):
    path = sound(make_record("lora", 16, 32.0, 2e-4), tmp_path / "a" / "demo")
    into = disk(1)
    assert main(["merge", str(tmp_path / "a"), "--into", str(into)]) == 2
    assert_one_sentence(capsys.readouterr().err, str(into / "demo" / path.name), "No space left", "make room there")
    assert list(into.rglob("*.json")) == [], "the record comes last"
    remount(into, f"size={8 * PAGE}")
    assert main(["merge", str(tmp_path / "a"), "--into", str(into)]) == 0
    assert verify.study(into, "demo")[:2] == (1, [])


@pytest.mark.slow
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_nothing_runs_where_nothing_can_be_written(disk, harness, state):
    results = disk(16)
    old = sound(make_record("lora", 16, 32.0, 2e-4), results / "demo")
    before = contents(results / "demo")
    if state == "full":
        fill(results)
    else:
        remount(results, "ro")
    done = harness("run", *TINY, "study=demo", f"results_dir={results}")
    assert done.returncode == 2
    said = ["No space left", "make room there"] if state == "full" else ["Read-only file system", "name another folder"]
    assert_one_sentence(done.stderr, str(results / "demo"), *said)
    assert contents(results / "demo") == before
    assert read(old).status == "ok"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("overrides", "file"),
    [([], ".json"), (["eval.tasks=[facts]", "eval.limit=4"], ".items.parquet")],
    ids=["record", "items"],
)
def test_a_cell_whose_record_or_items_do_not_fit_leaves_the_old_state(disk, harness, overrides, file):
    """The disk takes the lease and the log, but not what the cell leaves, nor a record that says why there is none."""
    results = disk(16)
    sound(make_record("lora", 16, 32.0, 2e-4), results / "demo")
    before = contents(results / "demo")
    fill(results, leave=2)
    done = harness("run", *TINY, *overrides, "study=demo", f"results_dir={results}")
    assert done.returncode == 2, done.stderr
    assert_one_sentence(done.stderr, str(results / "demo"), f"{file}: No space left", "make room there")
    assert contents(results / "demo") == before
