"""Several devices for one cell: the same losses as on one, what it took of all, and ranks that end together.

Here a device is a process that computes on the CPU, and gloo what they share steps by. In the second of them a model
may come to harm: it is to end as a cell of one process would.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from job_helpers import composed, no_peak, run_here, run_leased, run_request, tiny  # noqa: F401
from records import change, make_record, measured
from several_devices import SHORT, alike, go, short

from harness import validate
from harness.errors import UserError
from harness.job.data import batching
from harness.job.measure import device, timing
from harness.job.methods import galore, master_weights
from harness.job.models import adapting, loading
from harness.job.models.structure import inner
from harness.job.predict import pool, prediction
from harness.job.run_cell import run_cell
from harness.job.training import distributed, launch, layer_kernels, shards
from harness.protocol import PlanCells, PlannedCell, Progress, RunCell
from harness.record import Cell, Failure, Kinds, Memory, Phase, Precautions, Probe, Record, read
from harness.report.frame import frame
from harness.sweep import micro_batch
from harness.sweep.store import Study

on_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="its devices are a CPU's")
TWO = ("train.devices=2",)
SHARDED = (*TWO, "train.parallel=fsdp")


# Like one device


@pytest.mark.slow
@pytest.mark.long
@on_cpu
@pytest.mark.parametrize(
    "method",
    [
        ("full",),
        ("lora", "train.grad_accum=2", "train.bucketing=2", "train.gradient_checkpointing=true"),
        ("dora", "train.grad_accum=2"),
        ("galore", "speedups=off"),
    ],
)
def test_two_devices_come_to_what_one_does(tmp_path, alone, method):
    settings = (f"method={method[0]}", *method[1:])
    record, one = go(tmp_path, short(*settings, *TWO)), alone(*settings)
    alike(record, one)
    held, here = record.probe.resident, one.probe.resident
    assert (held.weights, held.adapters, held.optimizer) == (here.weights, here.adapters, here.optimizer)
    assert held.gradients == record.probe.gradients == one.probe.gradients > here.gradients  # where they are added up
    assert record.probe.peak.activations < one.probe.peak.activations
    predicted = prediction.Predictor(None, "fp32").predict(record.cell, None)
    assert Kinds(**predicted["peak"]) == record.probe.peak
    assert predicted["resident"]["gradients"] == held.gradients


@pytest.mark.long
@on_cpu
@pytest.mark.parametrize("method", ["full", "lora train.gradient_checkpointing=true"])
def test_layers_that_share_their_weights_have_kernels_of_their_own(tmp_path, monkeypatch, alone, method):
    """Which are for CUDA, but composed of torch's operations for a CPU."""
    settings = f"method={method}".split()
    one = alone(*settings)
    monkeypatch.setattr(layer_kernels, "enable", lambda model, device: layer_kernels.attach(inner(model)))
    cell, path = short(*settings, *SHARDED), tmp_path / "cell.json"
    assert launch.run(2, run_cell, RunCell(cell, "test", str(path)), lambda event: None) == 0
    record = read(path)
    assert record.environment["speedups"]["layer_kernels"] == "on: rms_norm, rope, swiglu"
    assert [p.loss for p in record.train.loss] == pytest.approx([p.loss for p in one.train.loss], rel=1e-5)
    assert [v.loss for v in record.validation] == pytest.approx([v.loss for v in one.validation], rel=1e-5)


@pytest.mark.long
@pytest.mark.slow
@on_cpu
@pytest.mark.parametrize(
    "method",
    [
        "full",
        pytest.param("lora train.gradient_checkpointing=true", marks=pytest.mark.long),
        pytest.param("muon", marks=pytest.mark.long),
        pytest.param("qlora", marks=pytest.mark.long),
    ],
)
def test_two_devices_share_the_weights(tmp_path, alone, method):
    settings = f"method={method}".split()
    record, one = go(tmp_path, short(*settings, *SHARDED)), alone(*settings)
    alike(record, one)
    used = record.environment["speedups"]
    assert used["fused_loss"] == "on: chunked"  # in the head, while its weights are whole
    assert used.get("fused_lora", "none") == ("on" if "lora" in method else "none")  # in a layer, while they are
    held, here = record.probe.resident, one.probe.resident
    for kind in ("weights", "adapters", "optimizer"):
        shared = 0.05 if method == "qlora" and kind == "weights" else 0.01  # scales are in every device
        assert getattr(held, kind) == pytest.approx(getattr(here, kind) / 2, rel=shared), kind
    assert held.gradients == 0
    assert record.probe.gradients == one.probe.gradients / 2
    # Whole are at most the head with the embedding that it shares, and a layer.
    assert held.weights < record.probe.peak.weights < here.weights
    predicted = prediction.Predictor(None, "fp32").predict(record.cell, None)
    assert Kinds(**predicted["peak"]) == record.probe.peak
    assert Kinds(**predicted["resident"] | {"activations": 0}) == dataclasses.replace(held, activations=0)


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_devices_wait_for_no_gradient_of_what_an_optimizer_leaves_as_it_is(tmp_path):
    lorafa = (*SHORT, "method=lorafa", "method.optim._target_=harm.create_lorafa_optimizer")
    record = run_leased(tiny(*lorafa, *TWO), Study(tmp_path, "study"), None, lambda event: None)
    alike(record, run_here(tmp_path, tiny(*lorafa)))
    predicted = prediction.Predictor(None, "fp32").predict(record.cell, None)
    assert Kinds(**predicted["peak"]) == record.probe.peak


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_a_cell_on_two_devices_goes_on_from_its_checkpoint(tmp_path, alone):
    cell = short("method=lora", "train.grad_accum=2", "train.bucketing=2", *TWO)

    def stop(event: Progress) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, cell, stop, precautions=Precautions(save_every=2))
    record = go(tmp_path, cell, precautions=Precautions(save_every=2))
    alike(record, alone("method=lora", "train.grad_accum=2", "train.bucketing=2"))
    assert record.train.resumed_at == [2]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("shared", [TWO, SHARDED])
def test_two_gpus_come_to_what_one_does(tmp_path, alone, shared):
    record, one = go(tmp_path, short("method=full", *shared)), alone("method=full")
    assert record.status == "ok", record.failure
    assert record.train.batches == one.train.batches
    assert [p.loss for p in record.train.loss] == pytest.approx([p.loss for p in one.train.loss], rel=1e-4)
    assert record.environment["device"]["id"].count("+") == 1


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_what_is_noted_of_a_file_of_ones_own_is_said_once_and_ends_nothing(tmp_path, capfd):
    rows = [{"question": f"What is {a} and {b}?", "answer": str(a + b)} for a in range(12) for b in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data=local", f"data.path={tmp_path / 'sums.jsonl'}")
    harmless = ("method.optim._target_=harm.build", "+method.optim.harm=none")
    record = go(tmp_path, composed("model=tiny", *SHORT, *harmless, *own, *TWO))
    assert record.status == "ok", record.failure
    assert capfd.readouterr().err.count("sums.jsonl is read as questions and answers: 144 records.") == 1


# Harm


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_a_rank_that_dies_ends_all(tmp_path):
    record = go(tmp_path, short("method=lora", *TWO, harm="dies"))
    assert (record.status, record.failure.phase, record.failure.step) == ("failed", "train", 2), record.failure
    assert record.failure.reason.startswith("Rank 1 of the cell's processes was killed by SIGKILL")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_while_ranks_are_followed_ends_them(monkeypatch):
    sent = []
    monkeypatch.setattr(launch.os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(launch.signal, "getsignal", lambda number: "the launcher's")

    def report(event):
        raise KeyError("phase")

    ours, rank = get_context("fork").Pipe()
    watch = launch.Watch([ours], launch._open(launch.ALONE), launch.ALONE, report)
    watch.start()
    rank.send({"phase": "load"})
    watch._thread.join(timeout=60)
    assert not watch._thread.is_alive()
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert watch.ending.reason == "Following the cell's processes failed: KeyError: 'phase'."


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_a_rank_that_raises_says_why(tmp_path):
    events: list[Progress] = []
    record = go(tmp_path, short("method=lora", *TWO, harm="raises"), events.append)
    assert (record.status, record.failure) == ("failed", Failure("train", 3, "RuntimeError: as it was told"))
    assert list(record.phases) == ["load", "probe", "train"]
    assert [event.step for event in events if event.step is not None] == [1, 2]
    assert events[-1] == Progress("recorded")


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_devices_that_drift_apart_are_no_result(tmp_path):
    record = go(tmp_path, short("method=full", *TWO, harm="drifts"))
    assert record.status == "failed"
    assert "The devices' weights differ" in record.failure.reason


@pytest.mark.long
@pytest.mark.slow
@on_cpu
def test_one_device_out_of_memory_is_enough(tmp_path):
    record = go(
        tmp_path, short("method=lora", *TWO, "eval.tasks=[]", harm="hungry"), precautions=Precautions(on_oom=True)
    )
    assert record.status == "ok", record.failure
    assert (record.smaller_batches.batch_size, record.smaller_batches.grad_accum) == (2, 2)
    (failure,) = record.smaller_batches.after
    assert failure.phase == "probe"
    assert failure.memory.adapters == 4 * record.parameters.trainable


# The processes themselves, without a cell


@pytest.fixture
def handler():
    """Puts back what is done about SIGTERM here."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def sleeping(folder: Path, report: launch.Report, rank: distributed.LaunchedRank) -> None:
    note(folder / str(rank.number), os.getpid())
    time.sleep(600)


def refusing(folder: Path, report: launch.Report, rank: distributed.LaunchedRank) -> None:
    sleeping(folder, report, rank) if rank.number == 0 else time.sleep(0.5)
    raise UserError("rank 1 can't work with this.")


def agreeing(folder: Path, report: launch.Report, rank: distributed.LaunchedRank) -> None:
    """On a processor with instructions for bf16, which seem to pay to the first rank alone."""
    torch.cpu._is_avx512_bf16_supported = lambda: True
    timing.product_speedup = lambda dtype, over: 2.0 if rank.number == 0 else 0.5
    device._bf16_pays.cache_clear()
    dtype = device.compute_dtype("auto")
    took = rank.number + 1.0
    time, parts, joules = distributed.slowest(
        took, {"forward": took / 2}, 3.0, rank.accelerator(sharded=False, bf16=True)
    )
    note(folder / str(rank.number), (str(dtype), time, parts, joules))


def gathering(asked: tuple[Path, Cell], report: launch.Report, rank: distributed.LaunchedRank) -> None:
    """Shards a model and gathers it, into another one too."""
    folder, cell = asked
    net, other = (adapting.adapt(loading.load(cell, torch.device("cpu")), cell) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in weights_of(net).items()}
    for tensor in weights_of(other).values():
        tensor.zero_()
    accelerator = rank.accelerator(sharded=True, bf16=False)
    found = distributed.whole(accelerator.prepare_model(net), accelerator, {*before})
    alike, count = same(found, before), len(found)
    distributed.restore(other, found)
    note(folder / str(rank.number), (alike, count, same(weights_of(other), before)))


def drawing(folder: Path, report: launch.Report, rank: distributed.LaunchedRank) -> None:
    """Steps weights by optimizers that draw random numbers, of which the second rank has drawn more before."""
    rank.accelerator(sharded=False, bf16=False)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.ones(48, 64).bfloat16()), torch.nn.Parameter(torch.ones(48, 64))]
    rounding = master_weights.InFp32(torch.optim.SGD(weights[:1], lr=1.0), "stochastic")
    group = {"params": weights[1:], "rank": 2, "update_proj_gap": 1, "scale": 1.0, "proj_type": "std"}
    projecting = galore.RandomisedGaLoreAdamW([group], lr=1.0, weight_decay=0.0, no_deprecation_warning=True)
    for p in weights:
        p.grad = (torch.randn(48, 64) / 512).to(p.dtype)
    for optimizer in (rounding, projecting):
        torch.rand(1 + rank.number)
        optimizer.step()
    note(folder / str(rank.number), [p.tolist() for p in weights])


def weights_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a model, and the scales of its packed matrices."""
    names = {name for name, _ in net.named_parameters()}
    return {name: t for name, t in shards.tensors(net).items() if name in names or shards.SCALES in name}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def note(path: Path, value: object) -> None:
    """Write `value` to `path`, all or nothing."""
    path.with_suffix(".tmp").write_text(repr(value))
    path.with_suffix(".tmp").rename(path)


def noted(folder: Path) -> list:
    return [ast.literal_eval(path.read_text()) for path in sorted(folder.glob("[01]"))]


@on_cpu
def test_ranks_draw_the_same_random_numbers_in_a_step(tmp_path):
    """Whatever each drew before; else their weights would go apart."""
    assert launch.run(2, drawing, tmp_path, print) == 0
    one, other = noted(tmp_path)
    assert one == other


@pytest.mark.slow
@on_cpu
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_their_job(tmp_path, sent):
    job = get_context("fork").Process(target=lambda: sys.exit(launch.run(2, sleeping, tmp_path, print)))
    job.start()
    pids = wait_for(lambda: len(noted(tmp_path)) == 2 and noted(tmp_path))
    os.kill(job.pid, sent)
    job.join(20)
    assert job.exitcode == (1 if sent == signal.SIGTERM else -signal.SIGKILL)
    wait_for(lambda: not any(running(pid) for pid in pids))


def running(pid: int) -> bool:
    """Whether there is such a process; one that nobody has buried yet is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.mark.slow
@on_cpu
def test_what_a_rank_refuses_all_do(tmp_path, handler):
    with pytest.raises(UserError, match="rank 1 can't work with this"):
        launch.run(2, refusing, tmp_path, print)
    assert not any(running(pid) for pid in noted(tmp_path))


@pytest.mark.slow
@on_cpu
def test_ranks_compute_in_one_format_and_have_the_time_of_the_slowest(tmp_path, handler):
    assert launch.run(2, agreeing, tmp_path, print) == 0
    assert noted(tmp_path) == [("torch.bfloat16", 2.0, {"forward": 1.0}, 3.0)] * 2


@pytest.mark.slow
@on_cpu
@pytest.mark.parametrize("method", ["lora", "qlora"])  # their base is frozen; that of qlora has scales
def test_of_a_sharded_model_the_first_rank_gets_all_weights(tmp_path, handler, method):
    assert launch.run(2, gathering, (tmp_path, tiny(f"method={method}")), print) == 0
    (alike, count, restored), other = noted(tmp_path)
    assert alike
    assert restored
    assert count > 0
    assert other == (False, 0, False)


class Decorated(torch.nn.Module):
    """Its forward pass is decorated, as those of transformers' models are."""

    @torch.no_grad()
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("own", [False, True])
def test_after_training_a_model_has_the_forward_pass_of_before(own_precision, own):
    accelerator, net = Accelerator(mixed_precision="bf16", cpu=True), Decorated()
    if own:
        net.forward = functools.partial(net.forward)
    before = net.forward
    assert accelerator.prepare_model(net).forward != before
    assert distributed.as_before(net, accelerator) is net
    assert (net.forward, "forward" in vars(net)) == (before, own)
    assert distributed.as_before(net, accelerator).forward == before


def test_of_memory_the_largest_rank_is_told():
    one, other = Memory(allocated_peak=5, process_peak=7), Memory(allocated_peak=6, reserved_peak=1, process_peak=3)
    together = distributed.largest([{"train": Phase(2.0, one)}, {"train": Phase(1.0, other)}])
    assert together == {"train": Phase(2.0, Memory(allocated_peak=6, reserved_peak=1, process_peak=7))}
    small, large = (Probe(Kinds(*peak), Kinds(1, 1, 1, 1, 1), 1, 1.0) for peak in [(9, 0, 0, 0, 0), (2, 2, 2, 2, 2)])
    assert distributed.fullest([small, large]) is distributed.fullest([large, small]) is large


# What can't be, and what follows from several devices elsewhere


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.devices=0",), "train.devices must be 1 or more, got 0"),
        (("train.nodes=0",), "train.nodes must be 1 or more, got 0"),
        (("train.nodes=3",), "train.nodes=3 can't share train.batch_size=8, .*take a multiple of 3"),
        (("train.nodes=3", *TWO), "train.nodes=3 train.devices=2 can't share train.batch_size=8, .*multiple of 6"),
        (("train.parallel=zero",), "train.parallel=zero is unknown"),
        (("train.devices=3",), "train.devices=3 can't share train.batch_size=8, .*take a multiple of 3"),
        (
            (*TWO, "+method.optim.per_layer=true"),
            "method=lora can't be combined with train.devices=2: it steps each",
        ),
        ((*SHARDED, "method=lora_8bit"), "method=lora_8bit can't be .*train.parallel=fsdp: weights in 8 bits can't be"),
        ((*SHARDED, "method=galore"), "method=galore can't be .*train.parallel=fsdp: it projects whole gradients"),
        *(
            ((*SHARDED, f"method={name}"), f"method={name} can't be .*train.parallel=fsdp: its init, before or after")
            for name in ("adalora", "corda", "eva", "lora_ga")
        ),
        (
            (*SHARDED, "method=lorafa"),
            "method=lorafa can't be .*peft.optimizers.create_lorafa_optimizer is not known to step sharded weights",
        ),
        (
            (*SHARDED, "method=full", "method.optim.optimizer._target_=bitsandbytes.optim.AdamW8bit"),
            "method=full can't be .*bitsandbytes.optim.AdamW8bit",
        ),
        ((*SHARDED, "model.upcast=true"), "model.upcast=true can't be combined with train.parallel=fsdp, which shards"),
    ],
)
def test_what_can_not_be_combined_is_refused_with_the_reason(compose, overrides, said):
    with pytest.raises(UserError, match=f"^{said}") as refused:
        validate.check(compose(*overrides))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (*TWO, "method=galore", "train.save_every=2", "retry.on_oom=true"),
        (*TWO, "method=qlora"),
        (*TWO, "method=adalora"),
        (*TWO, "method=eva"),
        (*SHARDED, "method=dora", "retry.on_oom=true"),
        (*SHARDED, "method=qlora", "train.save_every=2"),
        ("train.devices=3", "method=base"),
        ("train.parallel=fsdp", "method=galore"),
    ],
)
def test_what_can_be_combined_is_not_refused(compose, overrides):
    validate.check(compose(*overrides))


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    device.check(2)  # processes of a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    device.check(2)
    with pytest.raises(UserError, match=r"^train\.devices must be at most 2, the CUDA devices here, got 3"):
        device.check(3)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("mps"))
    device.check(1)
    with pytest.raises(UserError, match=r"^train\.devices=2 requires CUDA devices, or a CPU, got mps"):
        device.check(2)


@pytest.fixture
def cuda_build(monkeypatch):
    """torch says what its builds for CUDA say on a machine without a GPU: theirs is the kind, and none is available."""
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))


@on_cpu
def test_a_build_for_cuda_without_a_gpu_computes_on_the_cpu(cuda_build):
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    assert device.here() == torch.device("cpu")
    device.check(2)


@pytest.mark.long
@on_cpu
def test_a_build_for_cuda_without_a_gpu_plans(cuda_build):
    found, told = pool.answer(PlanCells([PlannedCell(tiny(*SHORT))], None, None, 0, 1.0, None))
    assert found["budget"] == found["environment"]["cpu"]["memory_bytes"]
    assert found["kernels"] == "cpu"
    assert found["environment"]["device"]["type"] == "cpu"
    assert told["prediction"]["largest_batch"] > 0


@on_cpu
def test_a_build_for_cuda_without_a_gpu_trains_on_processes_of_the_cpu(tmp_path, cuda_build, handler):
    cell = tiny(*SHORT, *TWO, "eval.tasks=[]", "train.max_steps=1", "train.validate_every=null")
    path = tmp_path / f"{cell.name}.json"
    assert launch.run(2, run_cell, RunCell(cell, "test", str(path)), lambda event: None) == 0
    found = read(path)
    assert (found.status, found.environment["device"]["type"]) == ("ok", "cpu"), found.failure


def out_of_memory(size: int, nodes: int, devices: int) -> Record:
    train = {"batch_size": size, "grad_accum": 1, "nodes": nodes, "devices": devices}
    train |= {"max_length": 512, "validation_items": 4, "precision": "fp32"}
    record = make_record("lora", status="oom", settings={"method": {"optim": {}}, "train": train})
    record.failure = Failure("train", 3, "no memory")
    return record


@pytest.mark.parametrize(
    ("size", "nodes", "devices", "found"),
    [
        (8, 1, 2, [(4, 2), (2, 4)]),
        (8, 2, 1, [(4, 2), (2, 4)]),
        (8, 4, 2, []),
        (6, 1, 2, [(2, 3)]),
        (10, 1, 2, [(6, 2), (2, 5)]),
        (12, 1, 3, [(6, 2), (3, 4)]),
    ],
)
def test_a_micro_batch_is_halved_on_each_device(size, nodes, devices, found):
    record, halved = out_of_memory(size, nodes, devices), []
    while (smaller := micro_batch.smaller(record)) is not None:
        record.smaller_batches = smaller
        halved.append((smaller.batch_size, smaller.grad_accum))
        pieces = batching.cut([list(range(size))], smaller.batch_size // (nodes * devices))
        assert len(pieces) % (nodes * devices) == 0
    assert halved == found


def test_utilisation_is_of_each_device():
    alone, two, four = (measured(make_record("lora")) for _ in range(3))
    change(two, train={"devices": 2})
    change(four, train={"devices": 2, "nodes": 2})
    one, half, quarter = (frame([record])["utilisation"][0] for record in (alone, two, four))
    assert one == pytest.approx(2 * half) == pytest.approx(4 * quarter)
