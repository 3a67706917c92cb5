"""Compiled decoder layers: the same losses, in training alone, and what compiling took."""

from __future__ import annotations

import functools

import pytest
import torch
import torch._inductor.config
from job_helpers import no_peak, prepared, run_tiny, tiny  # noqa: F401
from records import make_record, measured

from harness.errors import UserError
from harness.job import preflight
from harness.job.measure import device, live_memory
from harness.job.models import structure
from harness.job.training import compiled, gradient_checkpointing, loop

COMPILE = "train.compile=true"


@pytest.mark.long
@pytest.mark.slow
def test_a_compiled_cell_has_the_losses_of_one_that_is_not(tmp_path):
    # Padded, so that a layer is one graph: to compile them for real takes most of the time.
    settings = ("method=full", "train.max_steps=6", "train.validate_every=3", "infer.repeats=1", "speedups=off")
    plain, record = (run_tiny(tmp_path / str(len(more)), *settings, *more) for more in ((), (COMPILE,)))
    assert record.status == "ok", record.failure
    assert record.cell.id != plain.cell.id
    for name in ("loss", "grad_norm"):
        found, expected = ([getattr(point, name) for point in r.train.loss] for r in (record, plain))
        assert found == pytest.approx(expected, rel=1e-4), name
    assert record.validation[-1].loss == pytest.approx(plain.validation[-1].loss, rel=1e-4)
    assert record.probe == plain.probe
    assert plain.train.compile_seconds == []

    seconds, steps = record.train.compile_seconds, record.train.step_seconds
    assert len(seconds) == len(steps)
    assert 0 < seconds[0] < steps[0]
    assert seconds[-1] == 0  # sequences of any length are one graph
    rates = [point.tokens for point in record.train.loss]
    assert record.train.tokens_per_second_amortised == pytest.approx(rates[-1] / sum(steps))
    assert all(seconds[i] == 0 for i in record.train.steady_steps())
    assert record.train.tokens_per_second_steady > record.train.tokens_per_second_amortised


def counting(monkeypatch) -> list[str]:
    """Compiles by running as it is; the list tells of each graph."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return graphs


def test_layers_are_compiled_in_training_alone(monkeypatch):
    graphs = counting(monkeypatch)
    bench = prepared(tiny("method=full", "train.max_steps=4", "train.batch_size=3"))
    expected = [loop.summed_loss(bench.net, micro[0]).detach() for micro in bench.steps]
    held_out = loop.answer_loss(bench.net, bench.held_out, bench.accelerator)
    undo = compiled.enable(bench.net)
    assert loop.answer_loss(bench.net, bench.held_out, bench.accelerator) == held_out
    assert not graphs
    bench.net.train()
    before, made = compiled.seconds(), []
    for micro, loss in zip(bench.steps, expected, strict=True):
        assert torch.allclose(loop.summed_loss(bench.net, micro[0]), loss, rtol=1e-5)
        made.append((len(graphs), compiled.seconds() - before))
    assert made[0][0] > 0
    assert made[0][1] > 0
    assert made[-1] == made[-2]  # batches of other lengths need no other graphs
    assert len(graphs) < 4 * len(structure.decoder_layers(bench.net, bench.net.config))
    undo()
    assert torch.equal(loop.summed_loss(bench.net, bench.steps[0][0]), expected[0])
    assert len(graphs) == made[-1][0]


@pytest.mark.parametrize("settings", ["method=full", "method=qlora", "method=lora speedups=off"])
def test_layers_that_are_computed_again_are_compiled(monkeypatch, settings):
    graphs = counting(monkeypatch)
    bench = prepared(tiny(*settings.split(), "train.max_steps=4", "train.batch_size=3", "lr_scale=50"))
    bench.net.train()

    def gradients(micro) -> tuple[float, list[torch.Tensor]]:
        bench.net.zero_grad()
        loss = loop.summed_loss(bench.net, micro)
        loss.backward()
        return float(loss), [p.grad for p in bench.net.parameters() if p.grad is not None]

    recomputed, again = [], live_memory.recomputation
    monkeypatch.setattr(live_memory, "recomputation", lambda: recomputed.append(1) or again())
    expected = [gradients(micro) for (micro,) in bench.steps]
    disable = gradient_checkpointing.enable(bench.net)
    undo = compiled.enable(bench.net)
    made = []
    for (micro,), (loss, each) in zip(bench.steps, expected, strict=True):
        found, others = gradients(micro)
        assert found == pytest.approx(loss, rel=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(others, each, strict=True))
        made.append(len(graphs))
    assert made[0] > 0
    assert made[-1] == made[-2]  # what is computed again needs no other graphs
    inner = structure.inner(bench.net)
    assert len(recomputed) == len(bench.steps) * len(structure.decoder_layers(inner, inner.config))
    undo()
    assert gradients(bench.steps[0][0])[0] == expected[0][0]
    disable()
    assert len(graphs) == made[-1]


def test_steps_that_compile_are_no_part_of_the_steady_rate():
    found = make_record("lora")
    measured(found)
    found.train.step_seconds, found.train.warmup_steps = [9.0, 1.0, 1.0, 1.0, 5.0, 1.0], 3
    assert found.train.steady_steps() == [3, 4, 5]
    found.train.compile_seconds = [8.0, 0.0, 0.0, 0.0, 4.0, 0.0]
    assert found.train.steady_steps() == [3, 5]


def test_compiling_is_part_of_a_cell_and_refused_where_impossible(cell, monkeypatch):
    assert cell("method=lora").id == cell("method=lora", "train.compile=false").id
    asked = tiny("method=lora", COMPILE)
    assert asked.id != tiny("method=lora").id
    monkeypatch.setattr(device, "here", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(UserError, match=r"train\.compile=true requires a C\+\+ compiler on a CPU"):
        preflight.check([asked], None)
    with pytest.raises(UserError, match=r"train\.devices=2 can't be combined with train\.compile=true"):
        cell("method=lora", "train.devices=2", COMPILE)
