"""The instruments, against answers that are known to the byte."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from job_helpers import prepared, run_tiny, tiny
from torch import nn

from harness.job import optim, train
from harness.job.meter import LiveBytes, Meter

CPU = torch.device("cpu")
MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="the process's peak can be reset on Linux alone")


# Live bytes


def test_views_and_in_place_operations_take_nothing():
    with LiveBytes(CPU) as live:
        a = torch.zeros(1000)
        assert (live.now, live.peak) == (4000, 4000)
        views = [a[10:20], a.view(10, 100), a.t(), a.expand(5, 1000), a.detach()]
        a.add_(1).mul_(2)
        views[0].zero_()
        assert (live.now, live.peak) == (4000, 4000)
        del a
        assert live.now == 4000  # the views hold it
        del views
        assert (live.now, live.peak) == (0, 4000)


def test_peak_of_a_sequence_of_tensors():
    with LiveBytes(CPU) as live:
        a = torch.ones(100)  # 400
        b = a + 1  # 800
        c = torch.cat([a, b])  # 1600: the peak
        del a, b  # 800
        d = c.double().sum()  # 800 + 1600 for the doubles, + 8: the peak
        assert live.now == 800 + 8
        del c, d
        assert (live.now, live.peak) == (0, 2408)


def test_tensors_from_before_count_from_their_first_use():
    weights, never = torch.zeros(50), torch.zeros(1000)
    with LiveBytes(CPU) as live:
        assert live.now == 0
        weights.sum()
        assert live.now == 200
        live.see([weights, {"state": never}])
        assert live.now == 4200
        del never
        assert live.now == 200
        del weights
        assert live.now == 0


def test_dtypes_lists_and_other_devices():
    with LiveBytes(CPU) as live:
        kept = [torch.zeros(10, dtype=torch.bfloat16), torch.zeros(10, dtype=torch.int64)]
        assert live.now == 20 + 80
        halves = torch.split(kept[1], 5)
        torch._foreach_add_(list(halves), 1)
        assert live.now == 100
        torch.zeros(1000, device="meta")
        assert live.peak == 100


def test_a_linear_layers_forward_and_backward():
    layer, x = nn.Linear(3, 5), torch.ones(4, 3)
    weights, inputs, outputs = 4 * (3 * 5 + 5), 4 * 4 * 3, 4 * 4 * 5
    with LiveBytes(CPU) as live:
        live.see(list(layer.parameters()))
        assert live.now == weights
        y = layer(x)
        assert live.now == weights + inputs + outputs
        y.sum().backward()
        del y
        assert live.now == 2 * weights + inputs
        layer.zero_grad()
        assert live.now == weights + inputs
        assert 2 * weights + inputs < live.peak <= 2 * weights + inputs + 2 * outputs + 8


def test_nothing_is_counted_after_the_window():
    with LiveBytes(CPU) as live:
        pass
    torch.zeros(1000)
    assert live.peak == 0


# A training step


def probed(*overrides: str) -> tuple[int, object]:
    """The peak of a step after training, as run.run takes it, and the bench it was taken on."""
    bench = prepared(tiny(*overrides))
    train.train(
        bench.net, bench.optimizer, bench.steps, bench.settings, bench.accelerator, lambda: 0.0, lambda event: None
    )
    meter = Meter(CPU)
    with meter.window("train") as memory, meter.live(memory) as see:
        see([*bench.net.parameters(), *bench.net.buffers(), optim.state(bench.optimizer)])
        largest = max(bench.steps, key=lambda micro: micro[0].padded)
        train.probe(bench.net, bench.optimizer, largest, bench.settings["max_grad_norm"], bench.accelerator)
    return memory.allocated_peak, bench


def test_full_fine_tuning_holds_weights_gradients_and_two_moments():
    peak, bench = probed("method=full")
    weights = sum(p.numel() * p.element_size() for p in bench.net.parameters())
    largest = max(p.numel() * p.element_size() for p in bench.net.parameters())
    # Activations by hand, of the largest batch: of logits the values, their logarithms, and gradients of both; in each
    # of two layers some twenty tensors as wide as the hidden size or as the MLP, and attention of 4 heads, thrice.
    tokens = max(micro[0].padded for micro in bench.steps)
    longest = max(micro[0].input_ids.shape[1] for micro in bench.steps)
    activations = 4 * tokens * (4 * 1024 + 2 * (20 * 64 + 20 * 128 + 3 * 4 * longest))
    assert 4 * weights <= peak <= 4 * weights + max(activations, 3 * largest)


def test_galores_projections_are_seen():
    # galore-torch keeps r rows of a matrix's singular vectors as a view, which holds all of them: min(shape)² numbers
    _, bench = probed("method=galore", "rank=4")
    matrices = [p for name, p in bench.net.named_parameters() if name.endswith("proj.weight")]
    projections = sum(4 * min(p.shape) ** 2 for p in matrices)
    moments = sum(2 * 4 * bench.optimizer.state[p]["exp_avg"].numel() for p in bench.net.parameters())
    with LiveBytes(CPU) as live:
        live.see(optim.state(bench.optimizer))
    assert live.peak == moments + projections


def test_lora_takes_less_than_full_and_quantisation_less_than_lora():
    # the base's matrices in 32 bits, in 32 without gradients and moments, in 4
    full, lora, qlora = (probed(f"method={m}", "rank=2", "train.batch_size=1")[0] for m in ("full", "lora", "qlora"))
    assert qlora < lora < full


# Windows


def test_a_phase_is_measured_also_when_it_breaks():
    meter = Meter(CPU)

    def breaks() -> None:
        with meter.window("train") as memory, meter.live(memory):
            torch.zeros(1000)
            time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    phase = meter.phases["train"]
    assert phase.seconds >= 0.01
    assert phase.memory.allocated_peak == 4000
    assert phase.memory.reserved_peak is None  # the CPU has no such allocator


@linux
def test_the_process_peak_is_each_phases_own():
    meter = Meter(CPU)
    with meter.window("load"):
        held = torch.ones(300 * MIB // 4)
        del held
    with meter.window("train"):
        pass
    first, second = (meter.phases[name].memory.process_peak for name in ("load", "train"))
    assert first - second > 250 * MIB
    assert second > 50 * MIB  # torch itself


def test_phases_follow_one_another_within_the_whole(tmp_path):
    record = run_tiny(tmp_path)
    assert list(record.phases) == ["load", "train", "merge", "score"]
    assert sum(record.train.step_seconds) <= record.phases["train"].seconds
    assert sum(phase.seconds for phase in record.phases.values()) <= record.seconds


def test_scoring_does_not_touch_the_memory_of_training(tmp_path):
    small, large = (run_tiny(tmp_path, f"eval.batch_size={n}", "eval.limit=64") for n in (1, 64))
    assert small.phases["train"].memory.allocated_peak == large.phases["train"].memory.allocated_peak
    assert small.phases["train"].memory.allocated_peak > 0
