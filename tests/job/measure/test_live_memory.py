"""Live tensors, counted against answers that are known to the byte."""

from __future__ import annotations

import torch
from torch import nn

from harness.job.measure.live_memory import LiveBytes
from harness.record import Kinds

CPU = torch.device("cpu")


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
