"""The instruments, against answers that are known to the byte."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hydra.utils import instantiate
from job_helpers import prepared, run_tiny, tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.job import run_cell
from harness.job.measure import meter, nvml, probe
from harness.job.measure.meter import Energy, LiveBytes, Meter, Stopwatch
from harness.record import Kinds, Probe

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
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


def test_a_sparse_matrix_is_its_indices_and_values():
    with LiveBytes(CPU) as live:
        values = torch.ones(3)
        matrix = torch.sparse_coo_tensor(torch.tensor([[0, 1, 2], [2, 1, 0]]), values, (1000, 1000)).coalesce()
        out = torch.sparse.mm(matrix, torch.ones(1000, 1))
        del values
        held = matrix._indices().nbytes + matrix._values().nbytes + out.nbytes
        assert held <= live.now <= held + 200  # the matrix, and what it was coalesced from
        assert live.peak < 2 * 4 * 1000 * 2  # not a million


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


def test_kinds_are_told_at_sight_or_later_and_the_peak_follows():
    with LiveBytes(CPU) as live:
        weights = torch.zeros(10)
        live.see(weights, "weights")
        gradient = weights + 1
        both = torch.cat([weights, gradient])  # 40 + 40 + 80: the peak
        del both
        late = torch.zeros(5)
        live.see([gradient], "gradients")  # was there at the peak
        live.see([late], "optimizer")  # was not
        assert live.now_by_kind == Kinds(40, 0, 40, 20, 0)
        assert live.peak_by_kind == Kinds(40, 0, 40, 0, 80)
    assert live.peak == 160


def test_flops_of_products_and_attention_forward_and_backward():
    a, b = torch.zeros(3, 4, requires_grad=True), torch.zeros(4, 5, requires_grad=True)
    with LiveBytes(CPU) as live:
        (a @ b).sum().backward()
    assert live.flops == 3 * 2 * 3 * 4 * 5
    q = torch.zeros(2, 3, 16, 8, requires_grad=True)  # batch, heads, length, width
    with LiveBytes(CPU) as live:
        y = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        assert live.flops == 2 * (2 * 2 * 3 * 16 * 16 * 8)
        y.sum().backward()
    assert live.flops == (2 + 5) * (2 * 2 * 3 * 16 * 16 * 8)


# The probe: a training step's memory against closed forms


def probed(*overrides: str) -> tuple[Probe, SimpleNamespace]:
    """What run.run takes of two steps on the largest batch, and the bench they were taken on."""
    bench = prepared(tiny(*overrides))
    build = instantiate(bench.cell.settings["method"]["optim"], _convert_="all")
    bench.micro = max(bench.steps, key=lambda micro: micro[0].padded)
    added = {id(p) for name, p in bench.net.named_parameters() if "lora_" in name}
    live = LiveBytes(CPU)
    memory = probe.steps(bench.net, added, build, bench.micro, 1.0, bench.accelerator, live)
    assert sum(dataclasses.astuple(memory.peak)) == live.peak
    return memory, bench


def trainable(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def size(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def test_full_fine_tuning_holds_weights_gradients_and_two_moments():
    memory, bench = probed("method=full")
    parameters = list(bench.net.parameters())
    weights = size(parameters)
    assert memory.resident.weights == memory.peak.weights == weights + size(bench.net.buffers())
    assert memory.resident.adapters == memory.peak.adapters == 0
    assert memory.gradients == weights
    assert memory.resident.gradients == 0
    assert memory.resident.optimizer == memory.peak.optimizer == 2 * weights + 4 * len(parameters)  # and step counters
    # Activations by hand, of the largest batch: of logits the values, their logarithms, and gradients of both; in each
    # of two layers some twenty tensors as wide as the hidden size or as the MLP, and attention of 4 heads, thrice.
    tokens, longest = bench.micro[0].padded, max(bench.micro[0].lengths)
    activations = 4 * tokens * (4 * 1024 + 2 * (20 * 64 + 20 * 128 + 3 * 4 * longest))
    assert memory.peak.activations <= activations
    # forward and twice that backward, for each weight of a matrix; the head's at the positions with a loss alone
    matrices = sum(p.numel() for name, p in bench.net.named_parameters() if name.endswith("proj.weight"))
    kept = bench.micro[0].supervised / tokens
    seen = sum(length**2 for length in bench.micro[0].lengths) / tokens  # by a token, of its own sequence
    attention = 2 * 2 * 64 * seen * (2 + 5)  # layers, a multiplication and an addition, width, products
    assert memory.flops_per_token == pytest.approx(6 * (matrices + kept * 1024 * 64) + attention, rel=0.01)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_has_its_weights_its_gradients_and_its_moments(method):
    memory, bench = probed(f"method={method}", "rank=4")
    shapes = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
    shapes |= {"gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)}
    magnitudes = 0 if method == "lora" else sum(rows for rows, _ in shapes.values())
    count = 2 * (sum(4 * (rows + columns) for rows, columns in shapes.values()) + magnitudes)
    tensors = 2 * len(shapes) * (2 if method == "lora" else 3)
    assert sum(p.numel() for p in trainable(bench.net)) == count
    assert memory.resident.adapters == memory.peak.adapters == memory.gradients == 4 * count
    assert memory.resident.optimizer == 2 * 4 * count + 4 * tensors
    base = [p for name, p in bench.net.named_parameters() if "lora_" not in name]
    assert memory.resident.weights == size(base) + size(bench.net.buffers())


def test_galore_keeps_moments_at_rank_and_whole_bases():
    memory, bench = probed("method=galore", "rank=4")
    named = dict(bench.net.named_parameters())
    matrices = {name: p for name, p in named.items() if name.endswith("proj.weight")}
    rest = [p for name, p in named.items() if name not in matrices]
    # galore-torch keeps r singular vectors of a matrix as a view, which holds all of them: min(shape)² numbers
    state = sum(2 * 4 * 4 * max(p.shape) + 4 * min(p.shape) ** 2 for p in matrices.values())
    assert memory.resident.optimizer == state + 2 * size(rest)
    assert memory.gradients == size(named.values())


def test_galore_decomposes_its_gradients_in_form_alone(monkeypatch):
    class Decompositions(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.on = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._linalg_svd.default:
                self.on.append(args[0].device.type)
            return func(*args, **(kwargs or {}))

    with Decompositions() as formal:
        memory, bench = probed("method=galore", "rank=4")
    monkeypatch.setattr(probe, "_Undecomposed", lambda live: probe.SVD)
    with Decompositions() as real:
        assert probed("method=galore", "rank=4")[0] == memory
    matrices = sum(name.endswith("proj.weight") for name, _ in bench.net.named_parameters())
    assert (formal.on, real.on) == (["meta"] * matrices, ["cpu"] * matrices)


def test_what_a_decomposition_takes_in_itself_is_counted():
    live, matrix = LiveBytes(CPU), torch.randn(64, 32)
    with live:
        live.instead[probe.SVD] = probe._Undecomposed(live)
        factors = torch.linalg.svd(matrix, full_matrices=False)
    assert live.now == size([matrix, *factors])
    assert live.peak == size([matrix, matrix, *factors])
    assert live.peak_by_kind.activations == live.peak


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_the_workspace_of_a_decomposition_is_measured():
    matrix, live = torch.randn(1024, 512, device="cuda"), LiveBytes(torch.device("cuda"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with live:
        live.instead[probe.SVD] = probe._Undecomposed(live)
        torch.linalg.svd(matrix, full_matrices=False)
    taken = torch.cuda.max_memory_allocated() - before
    assert taken > size([matrix])
    assert live.peak >= size([matrix]) + taken


def test_nf4_weights_take_half_a_byte_and_their_scales():
    memory, bench = probed("method=qlora", "rank=4")
    matrices = [layer.weight for layer in bench.net.modules() if isinstance(layer, Linear4bit)]
    assert len(matrices) == 14
    rest = [p for n, p in bench.net.named_parameters() if "lora_" not in n and all(p is not m for m in matrices)]

    def nf4(elements: int) -> int:
        blocks = elements // 64  # a scale of 8 bits each
        groups = -(-blocks // 256)  # of scales, a scale of 32 bits each
        return elements // 2 + blocks + 4 * groups + 4 * (16 + 256 + 1)  # and the two codes, and the scales' mean

    packed = sum(nf4(2 * m.numel()) for m in matrices)
    assert memory.resident.weights == packed + size(rest) + size(bench.net.buffers())


def test_the_order_of_the_methods_memory():
    peaks = [
        sum(dataclasses.astuple(probed(f"method={m}", "rank=2", "train.batch_size=1")[0].peak))
        for m in ("qlora", "lora", "full")
    ]
    assert peaks == sorted(peaks)


def test_micro_batches_take_one_gradient_and_the_activations_of_one():
    whole, parts = (
        probed("method=lora", f"train.batch_size={size}", f"train.grad_accum={accum}")[0]
        for size, accum in ((8, 1), (2, 4))
    )
    assert parts.gradients == whole.gradients
    assert parts.resident.optimizer == whole.resident.optimizer
    assert parts.peak.activations < whole.peak.activations


@pytest.mark.parametrize("method", ["full", "lora", "dora", "qlora", "galore"])
def test_the_probe_leaves_the_weights_as_they_are(method):
    bench = prepared(tiny(f"method={method}"))
    before = {name: p.detach().clone() for name, p in bench.net.named_parameters()}
    build = instantiate(bench.cell.settings["method"]["optim"], _convert_="all")
    stepped = []

    def watched(net: nn.Module) -> torch.optim.Optimizer:
        optimizer = build(net)
        optimizer.register_step_post_hook(lambda *_: stepped.append(True))
        return optimizer

    probe.steps(bench.net, set(), watched, bench.steps[0], 1.0, bench.accelerator, LiveBytes(CPU))
    assert len(stepped) == 2
    for name, p in bench.net.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None, name


def test_an_untuned_model_is_probed_by_one_pass_without_gradients():
    bench = prepared(tiny("method=base"))
    (batch,) = bench.held_out
    live = LiveBytes(CPU)
    found = probe.forward(bench.net, batch, bench.accelerator, live)
    weights = size(bench.net.parameters()) + size(bench.net.buffers())
    assert found.resident.weights == found.peak.weights == weights
    assert (found.gradients, found.peak.gradients, found.peak.optimizer, found.peak.adapters) == (0, 0, 0, 0)
    assert found.peak.activations >= 4 * batch.supervised * 1024  # the logits


def test_training_begins_as_if_the_probe_had_not_been(tmp_path, monkeypatch):
    dropout = ("method=lora", "method.adapt.lora_dropout=0.5")
    first = run_tiny(tmp_path, *dropout)
    monkeypatch.setattr(probe, "steps", lambda *_: first.probe)
    assert [p.loss for p in run_tiny(tmp_path, *dropout).train.loss] == [p.loss for p in first.train.loss]


def test_windows_have_peaks_of_their_own():
    with LiveBytes(CPU) as live:
        a = torch.zeros(10)
        live.mark("second")
        b = torch.zeros(20)
        del b
        live.mark("")
        c = torch.zeros(5)
        live.mark("second")
        live.see(a, "weights")
    assert {name: peak.total for name, peak in live.windows.items()} == {"": 60, "second": 120}
    assert live.windows["second"].kinds["weights"] == live.windows[""].kinds["weights"] == 40
    assert (live.peak, live.peak_by_kind) == (120, Kinds(40, 0, 0, 0, 80))
    del c


# Energy


def powercap(folder: Path, *packages: tuple[int, int]) -> Path:
    for i, (used, span) in enumerate(packages):
        for name in (f"intel-rapl:{i}", f"intel-rapl:{i}:0"):  # the part is counted in the package
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "energy_uj").write_text(f"{used}\n")
            (folder / name / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


def test_joules_add_up_over_packages_and_wraps(tmp_path):
    energy = Energy(CPU, powercap(tmp_path, (1_000_000, 50_000_000), (49_000_000, 50_000_000)))
    before = energy.read()
    powercap(tmp_path, (3_500_000, 50_000_000), (2_000_000, 50_000_000))
    assert Energy.between(before, energy.read()) == pytest.approx(2.5 + 3.0)


def test_without_a_readable_counter_there_are_no_joules(tmp_path):
    assert Energy(CPU, tmp_path).read() is None
    folder = powercap(tmp_path, (1, 2))
    (folder / "intel-rapl:0" / "energy_uj").unlink()
    energy = Energy(CPU, folder)
    assert energy.read() is None
    assert Energy.between(energy.read(), energy.read()) is None


# Speed


def test_a_stopwatchs_parts_add_up(monkeypatch):
    ticks = iter([0.0, 0.0, 2.0, 5.0, 6.0, 10.0, 10.5])
    monkeypatch.setattr(meter, "clock", lambda: next(ticks))
    watch = Stopwatch(CPU)
    watch.start()
    for part in ("forward", "backward", "forward", "backward"):
        watch.lap(part)
    assert watch.stop() == (10.5, {"forward": 3.0, "backward": 7.0})


@pytest.mark.parametrize(("threads", "size"), [(4, 1024), (5, 2048)])
def test_the_matmul_peak_is_the_best_of_several(monkeypatch, threads, size):
    durations = iter([0.5, 4.0, 2.0, 1.0, 3.0, 4.0, 4.0, 4.0, 4.0])  # the first is warm-up
    now = [0.0]

    def tick() -> float:  # called before and after each product
        tick.calls += 1
        if tick.calls % 2 == 0:
            now[0] += next(durations)
        return now[0]

    tick.calls = 0
    monkeypatch.setattr(meter, "clock", tick)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert meter.matmul_peak(CPU, torch.float32) == 2 * size**3 / 1.0


@pytest.mark.gpu
@cuda
def test_cudas_instruments_agree():
    device = torch.device("cuda")
    watch, energy = Stopwatch(device), Energy(device)
    before = energy.read()
    a = torch.randn(4096, 4096, device=device)
    with LiveBytes(device) as live:
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        watch.start()
        b = a @ a
        watch.lap("forward")
        c = b + a
        watch.lap("backward")
        seconds, parts = watch.stop()
        grown = torch.cuda.max_memory_allocated() - start
    assert parts["forward"] + parts["backward"] <= seconds
    assert live.peak == 3 * 4 * 4096**2
    assert 2 * 4 * 4096**2 <= grown < 2 * 4 * 4096**2 + 64 * MIB  # and cuBLAS's workspace
    assert Energy.between(before, energy.read()) is None or Energy.between(before, energy.read()) >= 0
    assert meter.matmul_peak(device, torch.bfloat16) > 1e12
    del b, c


@pytest.mark.gpu
@cuda
def test_nvml_knows_this_process_or_says_nothing():
    held = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda")
    found = nvml.process_bytes(held.device)
    assert found is None or found >= 256 * MIB


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
    assert sum(record.train.step_seconds) <= record.phases["train"].seconds
    assert sum(phase.seconds for phase in record.phases.values()) <= record.seconds


def test_scoring_does_not_touch_the_memory_of_training(tmp_path, monkeypatch):
    stock = ("speedups=off", "eval.limit=64")  # our own scoring fills its rows whatever the batch size
    score, peaks = run_cell.score.score, []

    def counted(*args, **keywords):
        with LiveBytes(CPU) as live:
            found = score(*args, **keywords)
        peaks.append(live.peak)
        return found

    monkeypatch.setattr(run_cell.score, "score", counted)
    small, large = (run_tiny(tmp_path, f"eval.batch_size={n}", *stock) for n in (1, 64))
    assert small.probe == large.probe
    assert small.phases["probe"].memory.allocated_peak == large.phases["probe"].memory.allocated_peak
    assert peaks[1] > 1.2 * peaks[0]
