"""Compiled layers over rows of ever other numbers of sequences, by the attention that CUDA has for them."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from flash_on_cpu import flash_on_cpu
from job_helpers import prepared, tiny

from harness.job.data.batching import Batch, Layout
from harness.job.data.encoding import Example
from harness.job.training import attention, compiled, gradient_checkpointing, loop

STEPS, SEQUENCES = 200, (20, 110)  # in a row, at least and at most


def rows() -> list[Batch]:
    """A row a step; the first three have the least, the most, and again few sequences."""
    generator = random.Random(0)
    counts = [SEQUENCES[0], SEQUENCES[1], 21] + [generator.randint(*SEQUENCES) for _ in range(STEPS - 3)]
    layout = Layout(flat=True, pad=0)
    return [layout.batch([example(generator) for _ in range(count)]) for count in counts]


def example(generator: random.Random) -> Example:
    length = generator.randint(2, 4)
    return Example([generator.randrange(100) for _ in range(length)], generator.randrange(1, length))


@pytest.fixture
def compilations(monkeypatch) -> list[torch.fx.GraphModule]:
    """All graphs that are compiled, to what runs anyway."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return graphs


@pytest.mark.long
@pytest.mark.parametrize("recomputed", [False, pytest.param(True, marks=pytest.mark.long)])
def test_rows_of_any_number_of_sequences_share_graphs(compilations, recomputed):
    bench = prepared(tiny("method=lora"))
    attention.enable(bench.net, "cuda")
    if recomputed:
        gradient_checkpointing.enable(bench.net)
    bench.net.train()
    compiling = []

    def take(step: int, batch: Batch) -> float:
        before = len(compilations)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loop.summed_loss(bench.net, batch)
        loss.backward()
        if len(compilations) > before:
            compiling.append(step)
        return float(loss.detach())

    steps = rows()
    with flash_on_cpu():
        expected = [take(step, batch) for step, batch in enumerate(steps[:3])]
        assert not compiling
        undo = compiled.enable(bench.net)
        losses = [take(step, batch) for step, batch in enumerate(steps)]
        undo()
    assert losses[:3] == pytest.approx(expected, rel=1e-2)
    assert 0 < len(compiling) <= 3
