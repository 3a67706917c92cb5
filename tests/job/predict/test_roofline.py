"""The work of operations, against what their sizes say."""

from __future__ import annotations

import pytest
import torch

from harness.job.measure.live_memory import LiveBytes
from harness.job.predict.roofline import Roofline
from harness.protocol import CardRates
from harness.record import Calibration, TimedKernel

CPU = torch.device("cpu")
RATES = CardRates(bf16=1e9, fp32=1e8, bandwidth=1e6)


def work(operation, rates: CardRates = RATES, part: str = "forward", compiled: bool = False) -> dict[str, float]:
    roofline = Roofline(rates, compiled=compiled)
    with LiveBytes(CPU, roofline=roofline):
        operation()
    roofline.lap(part)
    return roofline.work["optimizer" if part == "optimizer" else "step"]


def test_a_product_takes_its_flops_in_its_format_or_its_bytes():
    flops, fast = 2 * 64 * 32 * 16, CardRates(1e9, 1e8, 1e12)
    for dtype, rate, size in ((torch.float32, 1e8, 4), (torch.bfloat16, 1e9, 2)):
        a, b = torch.ones(64, 32, dtype=dtype), torch.ones(32, 16, dtype=dtype)
        moved = size * (64 * 32 + 32 * 16 + 64 * 16)
        assert work(lambda a=a, b=b: a @ b) == {"launches": 1, "moved": pytest.approx(moved / 1e6)}
        assert work(lambda a=a, b=b: a @ b, fast) == {"launches": 1, "products": pytest.approx(flops / rate)}
    a = torch.ones(64, 64, dtype=torch.bfloat16)
    assert work(lambda: a @ a, CardRates(None, 1e8, 1e12))["products"] == pytest.approx(2 * 64**3 / 1e8)


def test_attention_is_apart_and_a_causal_one_has_half_of_the_products():
    q = torch.ones(1, 2, 64, 16)
    fast = CardRates(1e9, 1e8, 1e12)
    found = work(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True), fast)
    assert found["attention"] == pytest.approx(2 * 2 * 2 * 64 * 64 * 16 / 2 / 1e8)
    assert "products" not in found


def test_other_operations_take_what_they_move():
    a = torch.ones(1000)
    assert work(lambda: a + a.expand(1000))["moved"] == pytest.approx(3 * 4000 / 1e6)
    row = torch.ones(1)
    assert work(lambda: row.expand(1000) * 2)["moved"] == pytest.approx(4004 / 1e6)  # one number is read from a cache
    assert work(lambda: a.add_(1))["moved"] == pytest.approx(8000 / 1e6)
    table, which = torch.ones(5000, 8), torch.tensor([1, 2, 3])
    found = work(lambda: torch.nn.functional.embedding(which, table))
    assert found["moved"] == pytest.approx(2 * 3 * 8 * 4 / 1e6)


def test_views_and_allocations_take_none():
    a = torch.ones(100, 100)
    assert not work(lambda: (a.t(), a.view(-1), a[3], a.detach(), torch.empty(1000), a.new_empty(5)))


def test_a_compiled_chain_is_one_kernel_that_moves_its_ends():
    a, b = torch.ones(10, 100), torch.ones(10, 100)
    weight = torch.ones(100, 4)

    def chain():
        return (a.mul(b).exp() + a) @ weight

    eager, fused = work(chain), work(chain, compiled=True)
    product = 4000 + 1600 + 160
    assert eager["launches"] == 4
    assert eager["moved"] == pytest.approx((3 * 4000 + 2 * 4000 + 3 * 4000 + product) / 1e6)
    assert fused["launches"] == 2
    assert fused["moved"] == pytest.approx((2 * 4000 + 4000 + product) / 1e6)  # a and b are read, the sum is written


def test_what_a_chain_makes_for_later_is_written_once():
    a = torch.ones(1000)

    def step():
        kept = a.exp()
        torch.ones(8, 8) @ torch.ones(8, 8)
        return kept * 2, kept * 3

    fused = work(step, compiled=True)
    ends = work(lambda: torch.ones(8, 8) @ torch.ones(8, 8), compiled=True)
    assert fused["moved"] - ends["moved"] == pytest.approx((4000 + 4000 + 4000) / 1e6)  # read, written, read again


def test_what_a_chain_changes_in_place_is_written_at_the_end_of_a_part():
    weight, gradient = torch.ones(1000), torch.ones(1000)
    found = work(lambda: weight.add_(gradient.mul(0.1)), part="optimizer", compiled=True)
    assert found["moved"] == pytest.approx(3 * 4000 / 1e6)


def test_the_work_of_the_optimizer_is_apart():
    a = torch.ones(1000)
    assert work(lambda: a + 1, part="optimizer")["moved"] == pytest.approx(8000 / 1e6)


def test_uncounted_operations_take_none():
    roofline = Roofline(RATES)
    a = torch.ones(100)
    with LiveBytes(CPU, roofline=roofline) as live:
        with live.uncounted():
            _ = a @ a
        _ = a + 1
    roofline.lap("optimizer")
    assert live.flops == 0
    assert roofline.work["optimizer"] == {"launches": 1, "moved": pytest.approx(800 / 1e6)}


def test_a_calibration_tells_the_seconds_of_each_kernel():
    timed = [
        TimedKernel("mm", "float32 float32 cc", 2 * 64**3, 3 * 4 * 64 * 64, 0.5),
        TimedKernel("add", "float32 float32 c", 0, 8000, 0.25),
    ]
    roofline = Roofline(None, Calibration(["cpu", "x", 1], "now", "2", 1e-6, False, timed))
    a, b = torch.ones(64, 64), torch.ones(1000)
    with LiveBytes(CPU, roofline=roofline):
        _ = (a @ a, b + 1, torch.ones(500) + 1)
    roofline.lap("forward")
    assert roofline.work["step"]["timed"] == pytest.approx(0.5 + 0.25 + 0.125 + 0.0625)  # the last: to fill 2,000 bytes
