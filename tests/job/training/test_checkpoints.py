"""A cell that is killed goes on in another process, and comes to the same losses to the bit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from job_helpers import no_peak, run_leased, run_request, tiny  # noqa: F401
from smaller import SMALLER, need_extra

from harness.config import CONF
from harness.job.models import adapter_merge
from harness.job.training import checkpoints
from harness.protocol import Progress
from harness.record import Cell, Memory, Phase, Precautions, Record, Tokens, Train, read
from harness.sweep import runner
from harness.sweep.store import Study

SHORT = ("eval.tasks=[]", "infer.repeats=0", "lr=0.01", "train.max_steps=6", "train.validate_every=3")
METHODS = {
    "full": ("method=full",),
    "lora": ("method=lora",),
    "dropout": ("method=lora", "method.adapt.lora_dropout=0.3"),
    "qlora": ("method=qlora",),
    "dora": ("method=dora",),
    "dora_fast": ("method=dora_fast",),
    "qdora": ("method=qdora",),
    # Projections are renewed at steps 1 and 5: those of the first are still needed after the resume.
    "galore": ("method=galore", "method.knobs.update_proj_gap=4"),
    "galore_rsvd": ("method=galore_rsvd", "method.knobs.update_proj_gap=4"),
    "adamw8bit": ("method=full", "method.optim.optimizer._target_=bitsandbytes.optim.AdamW8bit"),
    "adalora": ("method=adalora",),  # importance and ranks are of its optimizer's state
    "lorafa": ("method=lorafa",),  # which keeps its state by names
    "muon": ("method=muon",),  # two optimizers as one
    "galore_layer": ("method=galore_layer", "method.knobs.update_proj_gap=4", "train.max_grad_norm=null"),
    "masters": ("method=full", "model.dtype=bfloat16"),
    "stochastic": ("method=galore_bf16", "method.knobs.update_proj_gap=4", "model.dtype=bfloat16"),
    "kahan": ("method=full_kahan", "model.dtype=bfloat16"),
    "corda": ("method=corda", "method.init.sequences=8"),  # its start is made again, from data
    "accumulated": ("method=lora", "train.grad_accum=2", "train.bucketing=2"),
}
EACH = [
    pytest.param(overrides, id=name, marks=[pytest.mark.long] if name in ("corda", "adalora", "dropout") else [])
    for name, overrides in METHODS.items()
]
UNTUNED = ("base", "base_nf4", "base_int8", "base_int8wo", "base_fp8wo", "api")
PAGED = "qlora_paged"  # memory that no checkpoint is made of
OTHERS = sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - METHODS.keys() - {*UNTUNED, PAGED})


class Killed(BaseException):
    """Stands for a kill: nothing in a job catches it, so nothing is put in order."""


def short(*overrides: str) -> Cell:
    return tiny(*SHORT, *overrides, *(["~method.optim.optimizer.fused"] if "AdamW8bit" in overrides[-1] else []))


def go(folder: Path, cell: Cell, every: int | None = 2, report: Callable[[dict], None] = lambda event: None) -> Record:
    """Run `cell`, or go on with it, with its checkpoints in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path, precautions = folder / f"{cell.name}.json", Precautions(save_every=every)
    options = {"checkpoints": str(folder / "checkpoints"), "precautions": precautions}
    return run_request(cell, "test", path, None, report, **options)


def killed(folder: Path, cell: Cell, when: dict, every: int = 2) -> None:
    """Run `cell` until it reports an event that has what `when` has."""

    def report(event: dict) -> None:
        if when.items() <= event.items():
            raise Killed

    with pytest.raises(Killed):
        go(folder, cell, every, report)
    assert not list(folder.glob("*.json"))


def found(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same(one: Record, other: Record) -> None:
    """Both trained and came out alike, to the bit."""
    assert (one.status, other.status) == ("ok", "ok")
    assert one.train.loss == other.train.loss
    assert one.validation == other.validation
    assert (one.train.batches, one.train.tokens) == (other.train.batches, other.train.tokens)
    assert one.scores == other.scores
    assert one.merge.max_logit_difference == other.merge.max_logit_difference


# Bit by bit


@pytest.mark.long
@pytest.mark.parametrize("overrides", EACH)
def test_a_killed_cell_comes_to_the_same_losses(tmp_path, overrides):
    cell = short(*overrides)
    whole = go(tmp_path / "whole", cell, every=None)
    assert (whole.train.save_every, whole.train.resumed_at) == (None, [])
    killed(tmp_path / "broken", cell, {"step": 4})
    assert found(tmp_path / "broken") == ["step-2"]  # it was killed before the fourth step's was made
    resumed = go(tmp_path / "broken", cell)
    same(resumed, whole)
    assert (resumed.train.save_every, resumed.train.resumed_at) == (2, [2])
    assert len(resumed.train.step_seconds) == len(resumed.train.laps["forward"]) == 6
    assert not (tmp_path / "broken" / "checkpoints").exists()
    assert read(tmp_path / "broken" / f"{cell.name}.json") == resumed


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # peft warns of much that is meant
@pytest.mark.parametrize("method", OTHERS)
def test_a_killed_cell_of_any_other_method_does_too(tmp_path, method):
    need_extra(method)
    test_a_killed_cell_comes_to_the_same_losses(tmp_path, (f"method={method}", *SMALLER.get(method, [])))


@pytest.mark.long
def test_killed_at_every_step_and_after_the_last(tmp_path):
    cell = tiny(*SHORT[1:], "method=lora", "method.adapt.lora_dropout=0.3")
    whole = go(tmp_path / "whole", cell, every=None)
    for step in range(1, 7):
        killed(tmp_path / "broken", cell, {"step": step})
    assert found(tmp_path / "broken") == ["step-4"]
    killed(tmp_path / "broken", cell, {"phase": "score"})
    assert found(tmp_path / "broken") == ["step-6"]  # training is over, and kept
    taken = []
    resumed = go(tmp_path / "broken", cell, report=taken.append)
    same(resumed, whole)
    assert resumed.train.resumed_at == [2, 4, 6]
    assert not [event for event in taken if "step" in event]


def test_projections_come_back_as_the_views_they_were(tmp_path, monkeypatch):
    looked_at = []
    restore = checkpoints.Checkpoints.restore

    def watched(self, model, optimizer, schedule):
        out = restore(self, model, optimizer, schedule)
        if out is not None:
            now = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
            was = torch.load(self.folder / "step-2" / "state.pt", weights_only=False)["optimizer"]["state"]
            looked_at.extend(
                (a["projector"], b["projector"]) for a, b in zip(was, now, strict=True) if "projector" in a
            )
            for a, b in looked_at:
                assert type(a) is type(b)
                assert torch.equal(a.ortho_matrix, b.ortho_matrix)
                assert a.ortho_matrix.stride() == b.ortho_matrix.stride()
                assert a.ortho_matrix.untyped_storage().nbytes() == b.ortho_matrix.untyped_storage().nbytes()
                assert (a.rank, a.scale, a.update_proj_gap) == (b.rank, b.scale, b.update_proj_gap) == (8, 2, 4)
        return out

    monkeypatch.setattr(checkpoints.Checkpoints, "restore", watched)
    cell = short(*METHODS["galore"])
    killed(tmp_path, cell, {"step": 3})
    assert go(tmp_path, cell).status == "ok"
    assert len(looked_at) == 2 * 7


# Clocks and peaks


def test_saving_is_outside_of_what_is_timed(tmp_path, monkeypatch):
    write = checkpoints.Checkpoints._write

    def slowly(*args) -> None:
        time.sleep(1)
        write(*args)

    monkeypatch.setattr(checkpoints.Checkpoints, "_write", slowly)
    start = time.monotonic()
    record = go(tmp_path, short("method=lora"))
    assert time.monotonic() - start > 3
    assert sum(record.train.step_seconds) < record.phases["train"].seconds < 3


def test_the_train_phase_is_of_all_its_parts(tmp_path):
    cell = short("method=lora")
    killed(tmp_path, cell, {"step": 4})
    about = tmp_path / "checkpoints" / "step-2"
    state = torch.load(about / "state.pt", weights_only=True)
    earlier = Phase(1000.0, Memory(process_peak=2**50))
    state["phase"] = {"seconds": earlier.seconds, "memory": vars(earlier.memory)}
    torch.save(state, about / "state.pt")
    rehash(about)
    phase = go(tmp_path, cell).phases["train"]
    assert 1000 < phase.seconds < 1100
    assert phase.memory.process_peak == 2**50


def test_the_steady_rate_leaves_out_a_warm_up_after_each_resume():
    def train(steps: int, warmup: int, *resumed_at: int) -> list[int]:
        seconds = [float(i) for i in range(steps)]
        return Train(
            steps, Tokens(1, 1, 1), seconds, warmup, None, 1.0, [], None, resumed_at=[*resumed_at]
        ).steady_steps()

    assert train(10, 3) == [3, 4, 5, 6, 7, 8, 9]
    assert train(10, 3, 5) == [3, 4, 8, 9]
    assert train(10, 3, 1, 9) == [4, 5, 6, 7, 8]
    assert train(10, 3, 10) == train(10, 3)
    assert train(4, 3, 2) == [3]  # a last step is better than none
    assert train(0, 0) == []


# What is not trusted


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with the checkpoint that a killed cell left, and the cell's record when nothing kills it."""
    folder = tmp_path_factory.mktemp("broken")
    cell = short("method=lora")
    killed(folder, cell, {"step": 4})
    return folder, go(tmp_path_factory.mktemp("whole"), cell, every=None)


def rehash(folder: Path, **changes) -> None:
    """Make the checkpoint in `folder` whole again after its files were changed."""
    about = json.loads((folder / "about.json").read_text()) | changes
    (folder / "about.json").write_text(json.dumps(about | {"sha256": checkpoints.hashes(folder)}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Intruder:
    """Would make a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("intruded",)


def intrude(folder: Path) -> None:
    torch.save({"measured": Intruder()}, folder / "state.pt")
    rehash(folder)


DAMAGES = {
    "torn state": (lambda c: os.truncate(c / "state.pt", 1000), "its files do not match their hashes"),
    "a flipped bit": (lambda c: flip(c / "parameters.pt"), "its files do not match their hashes"),
    "a missing file": (lambda c: (c / "parameters.pt").unlink(), "it can't be read"),
    "no words": (lambda c: (c / "about.json").write_text("{"), "it can't be read"),
    "no object": (lambda c: (c / "about.json").write_text("[]"), "it can't be read"),
    "another version": (lambda c: rehash(c, format=0), "another version of the harness wrote it"),
    "elsewhere": (lambda c: rehash(c, of={"threads": 64}), "it differs in batch_size, cell, cpu, "),
    "other code": (
        lambda c: rehash(c, of=json.loads((c / "about.json").read_text())["of"] | {"harness": "0"}),
        "it differs in harness.",
    ),
    "code": (intrude, "it can't be read"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_that_is_not_right_is_ignored_with_a_sentence(broken, tmp_path, monkeypatch, capfd, damage, why):
    folder, whole = broken
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "broken")
    damage(tmp_path / "broken" / "checkpoints" / "step-2")
    record = go(tmp_path / "broken", whole.cell)
    assert f"The checkpoint step-2 is not used: {why}" in capfd.readouterr().err
    same(record, whole)
    assert record.train.resumed_at == []
    assert not (tmp_path / "intruded").exists()


def test_a_checkpoint_of_other_settings_is_ignored(broken, tmp_path, capfd):
    shutil.copytree(broken[0], tmp_path / "broken")
    record = go(tmp_path / "broken", short("method=lora", "lr=0.02"))
    assert "step-2 is not used: it differs in cell." in capfd.readouterr().err
    assert record.train.resumed_at == []


def test_the_one_before_serves_where_the_last_is_torn(broken, tmp_path):
    folder, whole = broken
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "step-4").mkdir()
    record = go(tmp_path / "broken", whole.cell)
    same(record, whole)
    assert record.train.resumed_at == [2]


def test_without_save_every_none_is_looked_at_and_all_go_with_the_record(broken, tmp_path):
    folder, whole = broken
    shutil.copytree(folder, tmp_path / "broken")
    record = go(tmp_path / "broken", whole.cell, every=None)
    same(record, whole)
    assert record.train.resumed_at == []
    assert not (tmp_path / "broken" / "checkpoints").exists()


def test_a_full_disk_leaves_the_checkpoint_before_and_training_goes_on(tmp_path, capfd):
    cell, limit = short("method=full"), resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = go(tmp_path / "whole", cell, every=None)

    def report(event: dict) -> None:
        if event.get("step") == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        if event.get("step") == 5:
            assert found(tmp_path / "broken") == ["step-2"]
            raise Killed

    try:
        with pytest.raises(Killed):
            go(tmp_path / "broken", cell, 2, report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "The checkpoint of step 4 was not saved (" in capfd.readouterr().err
    same(go(tmp_path / "broken", cell), whole)


@pytest.mark.parametrize(
    ("status", "error"), [("failed", RuntimeError("torn")), ("oom", torch.OutOfMemoryError("out of memory"))]
)
def test_a_failed_cell_keeps_its_checkpoint_to_be_tried_again_from(tmp_path, monkeypatch, status, error):
    cell = short("method=lora")

    def broken(*args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(adapter_merge, "merge", broken)  # nothing real breaks there
        assert go(tmp_path, cell).status == status
    assert found(tmp_path) == ["step-6"]
    again = go(tmp_path, cell)
    assert (again.status, again.train.resumed_at) == ("ok", [6])
    assert not (tmp_path / "checkpoints").exists()


def test_the_code_of_a_checkpoint_includes_the_data_beside_it(tmp_path):
    (tmp_path / "generators").mkdir()
    (tmp_path / "generators" / "wordmath.py").write_text("STEPS = 1\n")
    (tmp_path / "generators" / "one_step.yaml").write_text("- name: gift\n")
    hashes = {checkpoints.code(tmp_path)}
    for file in ("wordmath.py", "one_step.yaml"):
        with (tmp_path / "generators" / file).open("a") as opened:
            opened.write("# changed\n")
        hashes.add(checkpoints.code(tmp_path))
    assert len(hashes) == 3
    assert {"run_cell.py", "one_step.yaml"} <= {path.name for path in checkpoints.JOB.rglob("*")}


def test_an_optimizer_whose_state_is_code_is_not_saved(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(checkpoints, "PROJECTORS", [])  # as if GaLore's were not known
    record = go(tmp_path, short("method=galore"))
    assert record.status == "ok"
    assert "GaLoreProjector, which can't be read back safely); training continues" in capfd.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_holds_only_tensors_and_plain_values(broken):
    for file in (broken[0] / "checkpoints" / "step-2").glob("*.pt"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(file) == []
        torch.load(file, weights_only=True)


# Through the sweep


@pytest.mark.faults
def test_a_job_that_is_killed_is_gone_on_with_by_the_next_sweep(tmp_path):
    cell = short("method=lora", "train.max_steps=60", "train.validate_every=null", "method.adapt.lora_dropout=0.3")
    studies = {name: Study(tmp_path, name) for name in ("whole", "broken")}
    whole = run_leased(cell, studies["whole"], None, lambda event: None)

    def kill(event: Progress) -> None:
        if event.step == 22:
            holder = runner._server._holder.process.pid
            (job,) = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
            os.kill(int(job), signal.SIGKILL)

    dead = run_leased(cell, studies["broken"], None, kill, precautions=Precautions(save_every=5))
    assert (dead.status, dead.failure.phase) == ("failed", "train")
    assert "SIGKILL" in dead.failure.reason
    assert studies["broken"].checkpoints(cell).is_dir()
    resumed = run_leased(cell, studies["broken"], None, lambda event: None, precautions=Precautions(save_every=5))
    same(resumed, whole)
    runner._server.stop()
    (at,) = resumed.train.resumed_at
    assert at >= 20
    assert at % 5 == 0
    assert not studies["broken"].checkpoints(cell).exists()
    assert "Resuming from the checkpoint step-" in studies["broken"].log(cell).read_text()


def test_another_gpu_and_machine_of_its_kind_may_go_on(monkeypatch):
    """Workers of a sweep take cells as they come, and a cluster gives a cell that it queues again another node."""

    def origin(cpu=(), **gpu):
        device = {"type": "cuda", "name": "H100", "id": "a", "memory_bytes": 80, "driver": "580.1"} | gpu
        processor = {"name": "EPYC", "cores": 64, "memory_bytes": 2**40} | dict(cpu)
        monkeypatch.setattr(checkpoints, "describe", lambda _: {"device": device, "threads": 2})
        monkeypatch.setattr(checkpoints.env, "processor", lambda: processor)
        return checkpoints.origin(torch.device("cpu"))

    assert origin() == origin(id="b")
    assert origin() == origin(memory_bytes=81, driver="580.2", cpu={"memory_bytes": 2**40 - 4096})
    assert origin() != origin(name="H200")
    assert origin() != origin(cpu={"name": "Xeon"})


def test_the_state_of_one_gpu_is_kept_however_many_there_are(monkeypatch):
    """A cell may go on where more GPUs are seen than before, or fewer."""
    states = [torch.get_rng_state()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states[0])
    monkeypatch.setattr(torch.cuda, "set_rng_state", states.append)
    checkpoints.load_random(checkpoints.random_state())
    assert len(states) == 2
    assert torch.equal(*states)
