"""The probe: a training step's memory against closed forms."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hydra.utils import instantiate
from job_helpers import prepared, run_tiny, tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.job.measure.live_memory import LiveBytes
from harness.job.training import probe
from harness.record import Probe

CPU = torch.device("cpu")


def probed(*overrides: str) -> tuple[Probe, SimpleNamespace]:
    """What a run takes of two steps on the largest batch, and the bench they were taken on."""
    bench = prepared(tiny(*overrides))
    build = instantiate(bench.cell.settings.method.optim, _convert_="all")
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


def test_the_workspace_of_a_decomposition_is_counted():
    live, matrix = LiveBytes(CPU), torch.randn(64, 32)
    with live, live.replacing(probe.SVD, probe._Undecomposed(live)):
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
    with live, live.replacing(probe.SVD, probe._Undecomposed(live)):
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


@pytest.mark.long
def test_the_order_of_the_methods_memory():
    peaks = [
        sum(dataclasses.astuple(probed(f"method={m}", "rank=2", "train.batch_size=1")[0].peak))
        for m in ("qlora", "lora", "full")
    ]
    assert peaks == sorted(peaks)


@pytest.mark.long
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
    build = instantiate(bench.cell.settings.method.optim, _convert_="all")
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


@pytest.mark.long
def test_training_begins_as_if_the_probe_had_not_been(tmp_path, monkeypatch):
    dropout = ("method=lora", "method.adapt.lora_dropout=0.5")
    first = run_tiny(tmp_path, *dropout)
    monkeypatch.setattr(probe, "steps", lambda *_, **__: first.probe)
    assert [p.loss for p in run_tiny(tmp_path, *dropout).train.loss] == [p.loss for p in first.train.loss]
