"""Calibration: the kernels of a small model on this machine's CPU, and the requests that it refuses."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from job_helpers import tiny

from harness.errors import UserError
from harness.job.measure.kernels import KernelTimes, kernel_of
from harness.job.predict import calibrating, prediction, workers
from harness.protocol import CalibrateDevice, CardRates, PlanCells, PlannedCell
from harness.record import Calibration

SMALL = ("train.batch_size=2", "train.max_length=64", "train.max_steps=3")
PAIRS = ("data=ultrafeedback", "train.objective=orpo", "train.preference_beta=0.1")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    told: list[dict] = []
    cells = [PlannedCell(tiny(f"method={method}", *SMALL)) for method in ("lora", "full")]
    found = calibrating.answer(CalibrateDevice([*cells, cells[0]]), told.append)
    assert [report["step"] for report in told] == [1, 2]  # an equal cell is timed once
    return found


@pytest.mark.long
def test_the_kernels_of_a_step_are_timed_at_several_sizes(calibration):
    assert calibration.device[0] == "cpu"
    assert not calibration.ahead
    assert calibration.launch >= 0
    products = [kernel for kernel in calibration.kernels if kernel.name == "mm"]
    assert len({kernel.flops for kernel in products}) > 10
    assert all(kernel.seconds > 0 and kernel.moved > 0 for kernel in calibration.kernels)


@pytest.fixture(scope="module")
def calibration_of_galore() -> Calibration:
    """Its optimizer steps weights together, which are other operations than those of single weights."""
    settings = ("method=galore", *SMALL, "rank=4")
    return calibrating.answer(CalibrateDevice([PlannedCell(tiny(*settings))]), lambda report: None)


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full", "dora", "galore"])
def test_all_kernels_that_a_plan_counts_were_timed(calibration, calibration_of_galore, method):
    """A plan's operations are those of a run, so that none takes the rate of another operation."""
    if method == "galore":
        calibration = calibration_of_galore
    names = {kernel.name for kernel in calibration.kernels}
    asked: set[str] = set()

    class Noting(Calibration):
        def seconds(self, name, formats, flops, moved):
            asked.add(name)
            return super().seconds(name, formats, flops, moved)

    noting = Noting(**vars(calibration))
    found = prediction.Predictor(None, "fp32", calibration=noting).predict(tiny(f"method={method}", *SMALL), None)
    assert found["calibrated_seconds"] > 0
    assert found["decomposition_seconds"] > 0 if method == "galore" else found["decomposition_seconds"] == 0
    if method != "dora":
        assert asked <= names, asked - names


def test_a_plan_takes_the_newest_calibration_of_its_device():
    here, gpu = ["cpu", "x", 1], ["cuda", "A"]
    of = [Calibration(device, str(n), "2", 0.0, False) for n, device in enumerate([here, here, gpu, gpu])]
    plan = PlanCells([], None, None, 0, 0.9, None, calibrations=of)
    assert workers._calibration(plan, here, "cpu") is of[1]
    assert workers._calibration(plan, here, "cuda") is None  # kernels of another device
    assert workers._calibration(plan, ["cpu", "x", 2], "cpu") is None
    card = PlanCells([], None, None, 0, 0.9, "cuda", CardRates(1.0, 1.0, 1.0), of[2:])
    assert workers._calibration(card, here, "cuda") is of[3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [(("train.devices=2",), r"requires train\.devices=1, got 2"), (PAIRS, r"train\.objective=sft")],
)
def test_what_can_not_be_timed_is_refused(settings, said):
    cell = tiny("method=lora", *SMALL, *settings)
    with pytest.raises(UserError, match=said):
        calibrating.answer(CalibrateDevice([PlannedCell(cell)]), lambda report: None)


def test_a_kernel_is_told_by_its_operation_its_formats_and_its_order():
    a = torch.ones(4, 8, dtype=torch.bfloat16)
    with KernelTimes(CPU) as times:
        _ = a @ a.t()
        a.float()
    (product, seconds), (cast, _) = times.calls
    assert (product.name, product.formats) == ("mm", "bfloat16 bfloat16 cs")
    assert product.flops == 2 * 4 * 8 * 4
    assert seconds > 0
    assert (cast.name, cast.formats, cast.flops, cast.moved) == ("_to_copy", "bfloat16 float32 c", 0, 4 * 8 * 6)
    assert kernel_of(torch.ops.aten.t.default, (a,), a.t(), 0) is None


def test_on_cuda_a_kernel_is_timed_in_the_stream_while_the_host_is_ahead(monkeypatch):
    """The device is kept busy until both events and the kernel are queued, so that it waits for no host."""
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            order.append("event")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, end: object) -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("sleep"), raising=False)
    with KernelTimes(torch.device("cuda")) as times:
        _ = torch.ones(2, 2) @ torch.ones(2, 2)
    assert order == ["sleep", "event", "event", "wait"] * len(order[::4])
    assert {seconds for _, seconds in times.calls} == {0.002}


@pytest.mark.long
def test_cells_of_different_precision_are_timed_one_after_another():
    settings = ("method=lora", *SMALL, "train.batch_size=1", "train.max_length=32")
    cells = [PlannedCell(tiny(*settings, f"train.precision={precision}")) for precision in ("fp32", "bf16")]
    found = calibrating.answer(CalibrateDevice(cells), lambda report: None)
    assert {"float32", "bfloat16"} <= {k.formats.split()[0] for k in found.kernels if k.name == "mm"}


def test_the_hosts_time_is_right_where_the_machine_is_slower_for_a_while(monkeypatch):
    """100 operations of 10 µs, 4 µs of the host for each, on a machine that takes twice as long for its last steps."""
    now, taken = [0.0], [0]

    class Simulated(calibrating._Step):
        def __init__(self):
            pass

        def _batch(self, shape):
            return shape

        def _speed(self):
            taken[0] += 1
            return 1.0 if taken[0] < 25 else 0.5

        def _take(self, batch):
            now[0] += 100 * 14e-6 / self._speed()

        def _timed(self, batch):
            speed = self._speed()
            return [
                (kernel_of(torch.ops.aten.mm.default, (torch.ones(2, 2),), torch.ones(2, 2), 1), 10e-6 / speed)
            ] * 100

    monkeypatch.setattr(calibrating.time, "perf_counter", lambda: now[0])
    assert Simulated().launch(ahead=False) == pytest.approx(4e-6)
    taken[0] = 0
    assert Simulated().launch(ahead=True) == pytest.approx(14e-6)


def test_the_hosts_time_is_right_where_the_device_bounds_the_step(monkeypatch):
    """400 operations of 5 µs of the host, for which an asynchronous device takes 20 ms in all."""
    host, device = [0.0], [0.0]
    monkeypatch.setattr(calibrating.time, "perf_counter", lambda: host[0])
    monkeypatch.setattr(calibrating, "synchronize", lambda: host.__setitem__(0, max(host[0], device[0])))

    class Simulated(calibrating._Step):
        def __init__(self):
            pass

        def _batch(self, shape):
            return shape

        def _take(self, batch):
            device[0] = max(host[0], device[0]) + 20e-3
            host[0] += 400 * 5e-6

        def _timed(self, batch):
            return [("kernel", 50e-6)] * 400

    assert Simulated().launch(ahead=True) == pytest.approx(5e-6)


@pytest.mark.long
def test_a_model_is_freed_before_the_next_one_is_timed(monkeypatch):
    """Also where nothing else frees it: the allocator runs out without asking Python to search for cycles."""
    alive: list[weakref.ref] = []

    class Noting(calibrating._Step):
        def __init__(self, *arguments):
            assert not [net for net in alive if net() is not None]
            super().__init__(*arguments)
            alive.append(weakref.ref(self._net))

    monkeypatch.setattr(calibrating, "_Step", Noting)
    settings = (*SMALL, "train.batch_size=1", "train.max_length=32")
    gc.disable()
    try:
        calibrating.answer(
            CalibrateDevice([PlannedCell(tiny(f"method={method}", *settings)) for method in ("full", "lora")]),
            lambda report: None,
        )
    finally:
        gc.enable()
    assert len(alive) == 2
