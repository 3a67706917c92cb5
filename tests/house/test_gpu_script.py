"""`make gpu` on the CPU: all of it that is not CUDA's own runs here, on the tiny model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from command_line import own_server
from job_helpers import composed
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.config import CONF, ROOT
from harness.errors import UserError
from harness.record import read_study

sys.path.append(str(ROOT))
from benchmarks.gpu import __main__ as script
from benchmarks.gpu import bench, beside, checks, render
from benchmarks.gpu.bench import Bench, Check

ALL = bench.METHODS
Script = Callable[..., tuple[int, dict[str, Check]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the study of this module's tests lies."""
    return tmp_path_factory.mktemp("proof") / "gpu"


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Two methods stand for all, and one holder serves all jobs."""
    with own_server(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "METHODS", ("base", "lora", "qlora_paged", "no_such_method"))
        patch.setattr(checks, "RIVALS", ("lora",))
        patch.setattr(checks, "BUSY", ("lora",))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture
def prove(folder) -> Script:
    """prove(argument, …) runs the script; its exit status, and the study's checks by name."""

    def run(*arguments: str) -> tuple[int, dict[str, Check]]:
        code = script.main(["--cpu", "--out", str(folder), *arguments])
        return code, {check.name: check for check in render.read(folder)}

    return run


@pytest.fixture
def on_cpu(tmp_path) -> Bench:
    """A bench with time enough, also on a machine that does other things."""
    facts = {"job": {"compute": {"device": {"type": "cpu"}}}}
    return Bench(tmp_path, facts, ["model=tiny"], time.monotonic() + 600)


@pytest.mark.long
def test_without_a_gpu_its_checks_are_skipped(prove, folder, capsys):
    code, found = prove("doctor", "cells", "memory", "attention", "oom", "tests", "quickstart")
    statuses = {name: check.status for name, check in found.items()}
    skipped = dict.fromkeys(("oom", "tests", "quickstart"), "skipped")
    assert statuses == dict.fromkeys(("doctor", "cells", "memory", "attention"), "passed") | skipped, found
    assert code == 0
    assert found["oom"].detail == found["tests"].detail == "no CUDA device"
    refused = "qlora_paged: method.adamw=paged requires a CUDA device."
    assert found["cells"].detail == f"2 of 3 cells are ok with finite losses; {refused}"
    assert {row["method"]: round(row["difference"], 2) for row in found["memory"].rows} == {"base": 0, "lora": 0}
    assert found["attention"].detail == "flash_for_cpu float32: 4"  # two lengths in two layers
    document = (folder / "GPU.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == document + "\n"
    assert document == render.document(folder)  # from what lies there alone
    rows = [line.split("|") for line in document.splitlines() if line.startswith("|")]
    told = {row[1].strip(): row[3].strip() for row in rows if row[3].strip() in ("passed", "failed", "skipped")}
    assert told == statuses
    assert {record.cell.method for record in read_study(folder)[0]} == {"base", "lora"}


@pytest.mark.long
@pytest.mark.slow
def test_engine_and_resume_are_proved_on_the_cpu_too(prove, folder):
    code, found = prove("engine", "resume")
    assert code == 0, found
    assert (found["engine"].status, found["resume"].status) == ("passed", "passed")
    (row,) = found["engine"].rows
    assert row["same"] == row["answers"] > 0
    resumed = re.fullmatch(
        r"resumed after step \[(\d+)\] of 24; losses differ by at most 0.0e\+00", found["resume"].detail
    )
    assert int(resumed[1]) in range(2, 24, 2), found["resume"].detail  # the kill may be late, but not that late
    assert {record.status for record in read_study(folder / "killed")[0]} == {"ok"}


@pytest.mark.long
@pytest.mark.slow
def test_two_devices_and_savers_are_proved_on_the_cpu_too(prove):
    """On the CPU the ranks are processes that talk by gloo, and train.batch_size=auto takes the whole step."""
    _, found = prove("devices", "savers", "time", "large")
    assert found["devices"].status == "passed", found["devices"]
    assert [row["devices"] for row in found["devices"].rows] == ["one", "ddp", "fsdp"]
    rows = {row["switch"]: row for row in found["savers"].rows}
    assert set(rows) == {"none", *bench.SAVERS}
    assert rows["global_batch"]["status"] == "ok", rows["global_batch"]
    assert found["time"].detail.endswith("no file of conf/device names it") or "no cell" in found["time"].detail
    assert found["large"].detail == "no CUDA device"


@pytest.mark.long
def test_a_shortage_on_purpose_is_recorded(on_cpu, monkeypatch):
    """On the CPU a hook asks torch's allocator for a pebibyte, in cells of `full` alone."""
    monkeypatch.setattr(Bench, "needs_cuda", lambda self: None)
    plainly = Bench.cell
    more = {"full": ["method.optim._target_=hungry.build", "+method.optim.limit=0"]}
    monkeypatch.setattr(Bench, "cell", lambda self, method, *rest: plainly(self, method, *rest, *more.get(method, [])))
    on_cpu.methods = ["full"]
    found = checks.run("oom", on_cpu)
    assert found.status == "passed", found
    assert found.detail.endswith("; the next cell has status ok")
    assert "oom in probe with " in found.detail
    (row,) = found.rows
    assert row["weights"] > 0
    more.clear()  # none runs out of memory now
    assert checks.run("oom", on_cpu).detail.endswith("the record has status ok")


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_tests_are_found_and_counted(tmp_path, on_cpu, monkeypatch):
    monkeypatch.setattr(Bench, "needs_cuda", lambda self: None)
    (tmp_path / "tests" / "job").mkdir(parents=True)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    test = "import pytest\n\n@pytest.mark.gpu\ndef test_it():\n    assert 1 + 1 == {}\n"
    (tmp_path / "tests" / "job" / "test_one.py").write_text(test.format(2))
    assert checks.run("tests", on_cpu).detail.startswith("1 passed")
    (tmp_path / "tests" / "job" / "test_two.py").write_text(test.format(3))
    found = checks.run("tests", on_cpu)
    assert found.status == "failed"
    assert found.detail.startswith("1 failed, 1 passed")
    assert "test_two.py::test_it" in found.detail


@pytest.mark.long
def test_a_trainer_and_kernels_are_measured_beside_the_cells(on_cpu, monkeypatch):
    def here(_: Bench, what: str, **request) -> dict:
        """In this process, which has the libraries, and by JSON all the same."""
        asked = json.loads(json.dumps(request, default=dataclasses.asdict))
        return json.loads(json.dumps(beside.ANSWERS[what](**asked)))

    monkeypatch.setattr(Bench, "beside", here)
    on_cpu.methods = ["lora"]
    assert checks.run("throughput", on_cpu).detail == "no cell is recorded; run the check `cells` first"
    assert checks.run("cells", on_cpu).status == "passed"
    for name in ("throughput", "busy"):
        check = checks.run(name, on_cpu)
        trainers = 1 + (importlib.util.find_spec("trl") is not None)
        assert (check.status, len(check.rows)) == ("passed", {"throughput": trainers, "busy": 2}[name]), check
    ours, plainly = check.rows
    assert ours["kernels"] > 0
    assert plainly["speedups"] == "off"


@pytest.mark.long
def test_at_the_time_limit_it_stops_with_what_it_has(prove, folder):
    before = sorted(folder.glob("*.json"))
    code, found = prove("cells", "engine", "--minutes", "0.01")
    assert code == 0
    for name in ("cells", "engine"):
        assert (found[name].status, found[name].detail.partition(":")[0]) == ("skipped", "the time limit was reached")
    assert sorted(folder.glob("*.json")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["engin"], "check=engin is unknown. Did you mean engine?"),
        (["--minutes", "0"], "--minutes must be positive, got 0."),
        (["--render"], "--render requires recorded checks; "),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, sentence):
    assert script.main(["--cpu", "--out", str(tmp_path), *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(sentence)
    assert len(said.err.splitlines()) == 1
    assert not said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert script.main(["--out", str(tmp_path / "gpu")]) == 2
    *_, last = capsys.readouterr().err.splitlines()  # that others use the CPU may be told before
    assert last == "A CUDA device is required, torch found cpu; --cpu tests the script itself."
    assert not list(tmp_path.iterdir())


def test_room_is_looked_for_on_the_disk_that_will_hold_it(tmp_path):
    bench.room(tmp_path / "not" / "there", 1)
    with pytest.raises(UserError, match=r"needs 931322\.6 GiB of free disk, and \d+\.\d GiB are free\.$"):
        bench.room(tmp_path / "not" / "there", 1e15)


def test_a_failed_check_is_told_and_is_the_exit_status(tmp_path, monkeypatch, on_cpu):
    def broken(bench: Bench) -> Check:
        """It breaks."""
        raise ZeroDivisionError("of | nothing")

    monkeypatch.setitem(checks.CHECKS, "engine", checks.Step(broken, 0))
    render.add(checks.run("engine", on_cpu), tmp_path)
    assert script.main(["--render", "--out", str(tmp_path)]) == 1
    told = re.sub(" +", " ", (tmp_path / "GPU.md").read_text())  # a table's columns are padded
    assert "| It breaks | failed | ZeroDivisionError: of \\| nothing |" in told


def test_a_process_that_hangs_is_ended(on_cpu, monkeypatch):
    monkeypatch.setattr(bench, "CELL_SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="time limit of 1 seconds"):
        on_cpu.command([sys.executable, "-c", "import time; time.sleep(60)"], None)
    assert time.monotonic() - begun < 10


@pytest.mark.long
@pytest.mark.parametrize(
    "model",
    [
        ["model=smollm2_135m"],
        pytest.param([f"model={script.RANDOM}", f"model.path={script.BUILT}"], marks=pytest.mark.long),
    ],
)
def test_every_cell_of_the_gpu_run_composes(tmp_path, model):
    facts = {"job": {"compute": {"device": {"type": "cuda"}, "formats": {"bf16": "yes"}}}}
    on_cuda = Bench(tmp_path, facts, model, time.monotonic())
    switches = [more for name, more in bench.SAVERS.items() if name in on_cuda.config().train]
    found = [on_cuda.cell(method) for method in ALL if (CONF / "method" / f"{method}.yaml").is_file()]
    found += [on_cuda.cell("lora", *bench.TRAINING_ALONE, *more) for more in switches]
    assert len({cell.id for cell in found}) == len(found) > 12
    assert {cell.settings.train.max_steps for cell in found if cell.seed is not None} == {10}


# What is measured beside the cells


def test_a_random_model_has_the_shape_and_loads(tmp_path):
    shape = {"model_type": "qwen3", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    told = beside.random(shape, "bfloat16", str(tmp_path / "model"))
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert (net.dtype, net.config.vocab_size) == (torch.bfloat16, 2048)
    assert told["weights"] == sum(p.numel() for p in net.parameters())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) <= 2048
    assert isinstance(tokenizer.decode([5, 2000]), str)  # a random head also gives ids that have no text
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def small(*overrides: str) -> dict:
    load = ("model=tiny", *bench.SHORT, *bench.LOAD["cpu"], *bench.TRAINING_ALONE)
    return dataclasses.asdict(composed(*load, *overrides))


def test_the_trainer_sees_the_same_data(tmp_path):
    from job_helpers import run_here

    cell = composed("model=tiny", *bench.SHORT, *bench.LOAD["cpu"], *bench.TRAINING_ALONE, "method=lora", "lr=0.01")
    ours = [point.loss for point in run_here(tmp_path, cell).train.loss]
    found = beside.trainer(dataclasses.asdict(cell))
    assert found["loss"] == pytest.approx(sum(ours) / len(ours), rel=1e-4)
    assert found["rate"] > 0
    assert found["peak"] is None


def test_operations_of_a_step_are_counted():
    found = beside.busy(small("method=lora"))
    assert found["kernels"] > 100
    assert found["seconds"] > 0
    assert found["wall"] > 0


def test_spans_that_overlap_count_once():
    assert beside.covered([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4
    assert beside.covered([]) == 0


def test_losses_are_held_against_the_reference():
    records = {record.cell.method: record for record in read_study(checks.REFERENCE)[0]}
    lora = records["lora"]
    assert checks.against(lora, lora)["apart"] == ""
    assert checks.against(records["base"], records["base"])["apart"] == ""
    later = dataclasses.replace(lora.validation[-1], loss=1.06 * lora.validation[-1].loss)
    assert checks.against(lora, dataclasses.replace(lora, validation=[later]))["apart"].startswith("the last loss")
    other = dataclasses.replace(lora.train, batches="sha256:other")
    assert checks.against(lora, dataclasses.replace(lora, train=other))["apart"] == "the batches differ"


def test_a_loss_that_is_not_finite_is_a_failure():
    record = read_study(checks.REFERENCE)[0][-1]
    assert checks._summary(record)["status"] == "ok"
    broken = [dataclasses.replace(record.validation[-1], loss=math.nan)]
    assert checks._summary(dataclasses.replace(record, validation=broken))["status"] == "failed"


def test_the_last_run_of_a_check_counts(tmp_path):
    for status in ("failed", "passed"):
        render.add(Check(status, "why", "doctor"), tmp_path)
    assert [check.status for check in render.read(tmp_path)] == ["passed"]
    assert len((tmp_path / render.CHECKS).read_text().splitlines()) == 2
    json.loads((tmp_path / render.CHECKS).read_text().splitlines()[0])
