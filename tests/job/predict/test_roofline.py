"""The least time of operations, against what their sizes say."""

from __future__ import annotations

import pytest
import torch

from harness.job.measure.live_memory import LiveBytes
from harness.job.predict.roofline import LAUNCH, Roofline
from harness.protocol import CardRates

CPU = torch.device("cpu")
RATES = CardRates(bf16=1e9, fp32=1e8, bandwidth=1e6)  # slow, so that nothing hides behind a launch


def seconds(operation, rates: CardRates = RATES, part: str = "forward") -> float:
    roofline = Roofline(rates)
    with LiveBytes(CPU, roofline=roofline):
        operation()
    roofline.lap(part)
    return roofline.laps[part]


def test_a_product_takes_its_flops_in_its_format_or_its_bytes():
    for dtype, rate, size in ((torch.float32, 1e8, 4), (torch.bfloat16, 1e9, 2)):
        a, b = torch.ones(64, 32, dtype=dtype), torch.ones(32, 16, dtype=dtype)
        bytes_ = size * (64 * 32 + 32 * 16 + 64 * 16)
        flops = 2 * 64 * 32 * 16
        assert seconds(lambda a=a, b=b: a @ b) == max(flops / rate, bytes_ / 1e6)
        fast = CardRates(1e9, 1e8, 1e12)
        assert seconds(lambda a=a, b=b: a @ b, fast) == max(flops / rate, LAUNCH)
    without = CardRates(None, 1e8, 1e12)
    a = torch.ones(64, 64, dtype=torch.bfloat16)
    assert seconds(lambda: a @ a, without) == 2 * 64**3 / 1e8


def test_other_operations_take_what_they_move():
    a = torch.ones(1000)
    assert seconds(lambda: a + a.expand(1000)) == pytest.approx(3 * 4000 / 1e6)
    row = torch.ones(1)
    assert seconds(lambda: row.expand(1000) * 2) == pytest.approx(4004 / 1e6)  # the one number is read from a cache
    assert seconds(lambda: a.add_(1)) == pytest.approx(8000 / 1e6)
    table, which = torch.ones(5000, 8), torch.tensor([1, 2, 3])
    assert seconds(lambda: torch.nn.functional.embedding(which, table)) == pytest.approx(2 * 3 * 8 * 4 / 1e6)


def test_views_and_allocations_take_none():
    a = torch.ones(100, 100)
    assert seconds(lambda: (a.t(), a.view(-1), a[3], a.detach(), torch.empty(1000), a.new_empty(5))) == 0


def test_a_launch_is_the_least_but_in_the_optimizer():
    a, fast = torch.ones(1), CardRates(1e15, 1e15, 1e15)
    assert seconds(lambda: (a + 1, a * 2), fast) == 2 * LAUNCH
    assert 0 < seconds(lambda: (a + 1, a * 2), fast, "optimizer") < LAUNCH / 1000


def test_uncounted_operations_take_none():
    roofline = Roofline(RATES)
    a = torch.ones(100)
    with LiveBytes(CPU, roofline=roofline) as live:
        with live.uncounted():
            _ = a @ a
        _ = a + 1
    roofline.lap("optimizer")
    assert live.flops == 0
    assert roofline.laps == {"optimizer": pytest.approx(800 / 1e6)}
