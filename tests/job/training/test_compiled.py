"""Compiled decoder layers: the same losses, in training alone, and what compiling took."""

from __future__ import annotations

import functools

import pytest
import torch
import torch._inductor.config
from job_helpers import no_peak, prepared, run_tiny, tiny  # noqa: F401
from records import make_record, measured
from smaller import SMALLER, need_extra
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from harness.config import CONF
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


@pytest.mark.long
@pytest.mark.slow
def test_the_second_cell_of_a_study_takes_what_the_first_one_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    settings = ("method=full", "train.max_steps=2", "infer.repeats=0", "eval.tasks=[]", "speedups=off", COMPILE)
    graphs, seconds = [], []
    for seed in (0, 1):
        record = run_tiny(tmp_path / str(seed), *settings, f"seed={seed}")
        assert record.status == "ok", record.failure
        seconds.append(record.train.compile_seconds[0])
        graphs.append({path.name for path in (tmp_path / "cache" / compiled.KEPT / "fxgraph").glob("*/*")})
    assert graphs[0]
    assert graphs[1] == graphs[0]
    assert 0 < seconds[1] < seconds[0]


def counting(monkeypatch, compiler=lambda graph, inputs: graph.forward) -> list[torch.fx.GraphModule]:
    """Compiles by `compiler`, by default to what runs anyway; the list is of all graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return compiler(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return graphs


@pytest.mark.long
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


@pytest.mark.long
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


# All methods

UNTUNED = {"api", "base", "base_fp8wo", "base_int8", "base_int8wo", "base_nf4"}
METHODS = sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - UNTUNED)
REFUSED = {"adamss", "cartridge", "prefix_tuning", "tinylora"}


@pytest.fixture(scope="module")
def compared() -> set[tuple]:
    """What compiled layers consisted of, of the methods that were compared."""
    return set()


def layers_of(net) -> nn.ModuleList:
    inner = structure.inner(net)
    return structure.decoder_layers(inner, inner.config)


def parts(layers) -> tuple:
    """What the compiler sees of `layers`: modules, their hooks, and their weights without values."""
    weights = {name: (p.shape, p.dtype, p.requires_grad) for name, p in layers.named_parameters()}
    return tuple((name, type(m), len(m._forward_hooks)) for name, m in layers.named_modules()), tuple(weights.items())


def steps_of(bench) -> tuple[list[float], list[torch.Tensor]]:
    """The losses of the bench's steps, and the trained weights after them."""
    bench.net.train()
    # Else the first layer, whose input requires no gradient, needs graphs of its own.
    structure.inner(bench.net).enable_input_require_grads()
    torch.manual_seed(0)
    take = functools.partial(loop.take_step, bench.net, bench.optimizer)
    losses = [float(take(micro, bench.settings.max_grad_norm, bench.accelerator, str)[0]) for micro in bench.steps]
    return losses, [p.detach() for p in bench.net.parameters() if p.requires_grad]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # peft warns of much that is meant
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_as_it_does_uncompiled_or_is_refused(monkeypatch, compared, method):
    """Methods of which the compiler sees the same are compared once.

    Of a method that adapts all matrices in one way, one matrix is adapted, and only its block is compiled.
    """
    need_extra(method)
    asked = [f"method={method}", "lr_scale=50", "train.max_steps=2", "speedups=off", *SMALLER.get(method, [])]
    matrices = (tiny(*asked).settings.method.adapt or {}).get("target_modules")
    asked += ["method.adapt.target_modules=[down_proj]"] if matrices == "all-linear" else []
    if method in REFUSED:
        with pytest.raises(UserError, match=rf"^method={method} can't be combined with train\.compile=true: its "):
            tiny(*asked, COMPILE)
        return
    cell = tiny(*asked, COMPILE)
    find = structure.decoder_layers
    if matrices == "all-linear":
        monkeypatch.setattr(structure, "decoder_layers", lambda *of: nn.ModuleList(layer.mlp for layer in find(*of)))
    bench = prepared(cell)
    if (seen := parts(layers_of(bench.net))) in compared:
        return
    compared.add(seen)
    losses, weights = steps_of(bench)
    bench = prepared(cell)
    graphs = counting(monkeypatch, aot_eager)
    undo = compiled.enable(bench.net)
    known = []  # the graphs before and after the last layer is called
    last = layers_of(bench.net)[-1]
    call = last._compiled_call_impl

    def counted(*args, **keywords):
        known.append(len(graphs))
        out = call(*args, **keywords)
        known.append(len(graphs))
        return out

    last._compiled_call_impl = counted
    found, others = steps_of(bench)
    undo()
    assert known[0::2] == known[1::2], "the last layer does not share the graphs of the others"
    assert known[0] > 0
    assert found == pytest.approx(losses, rel=1e-6)
    for weight, other in zip(weights, others, strict=True):
        assert torch.allclose(other, weight, rtol=1e-5, atol=1e-6)


def test_layers_that_share_no_graphs_are_an_error(monkeypatch):
    """By torch's default the layers above its limit would run uncompiled."""
    counting(monkeypatch)
    bench = prepared(tiny("method=full", "speedups=off"))
    for number, layer in enumerate(layers_of(bench.net)):
        layer.mlp.gate_proj = nn.Linear(64, 128, bias=bool(number))
    monkeypatch.setattr(compiled, "GRAPHS", 1)
    undo = compiled.enable(bench.net)
    bench.net.train()
    with pytest.raises(RuntimeError, match=r"^train\.compile=true requires layers that share .* more than 1\.$"):
        loop.summed_loss(bench.net, bench.steps[0][0])
    undo()


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
