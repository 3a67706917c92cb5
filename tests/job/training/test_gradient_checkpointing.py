"""Gradient checkpointing: the same losses and gradients, in less memory, whatever the method and the architecture."""

from __future__ import annotations

import copy
import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import ARCHITECTURES, built, cell_of
from job_helpers import prepared, run_tiny, tiny
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from harness.config import CONF
from harness.errors import UserError
from harness.job.data import batching
from harness.job.data.batching import Batch
from harness.job.data.encoding import Example
from harness.job.evaluate import decoding
from harness.job.measure import inference_speed
from harness.job.measure.live_memory import LiveBytes
from harness.job.models import checks, empty_weights, loading
from harness.job.predict import prediction, shapes
from harness.job.training import attention, gradient_checkpointing, loop

ON = "train.gradient_checkpointing=true"
CPU = torch.device("cpu")
EXAMPLES = [Example([(7 * n + 5 * i) % 60 + 1 for i in range(n)], 2) for n in (9, 3, 3, 14)]


def step(net: torch.nn.Module, batch: Batch) -> tuple[float, dict[str, torch.Tensor], LiveBytes]:
    """The loss, the gradients by name, and what was seen of one pass forward and backward, in training mode."""
    net.train()
    torch.manual_seed(0)
    net.zero_grad()
    with LiveBytes(CPU) as live:
        loss = loop.summed_loss(net, batch)
        loss.backward()
    return float(loss), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}, live


def same(net: torch.nn.Module, batch: Batch) -> None:
    """Assert that `net` has the same loss and gradients with its layers computed again, and that they are."""
    loss, gradients, kept = step(net, batch)
    disable = gradient_checkpointing.enable(net)
    again, found, dropped = step(net, batch)
    disable()
    assert again == pytest.approx(loss, rel=1e-6)
    assert found.keys() == gradients.keys() != set()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 * max(1e-3, float(gradient.abs().max())), name
    assert dropped.flops == kept.flops
    assert dropped.recomputed > kept.recomputed == 0
    assert step(net, batch)[2].recomputed == 0


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_has_the_same_gradients(tmp_path, kind, flat):
    net = AutoModelForCausalLM.from_pretrained(built(tmp_path, kind, **ARCHITECTURES[kind]))
    suited = attention.unsuited(net) is None
    if flat and suited:
        attention.enable(net)
    same(net, batching.Layout(flat=flat and suited, pad=1).batch(EXAMPLES))


@pytest.mark.parametrize(
    "method",
    [
        *("full", "qlora", "dora", "dora_fast", "qdora", "prompt_tuning", "adaption_prompt", "pvera", "ia3"),
        *("lora method.adapt.lora_dropout=0.5", "lora train.packing=true", "lora speedups=off"),
    ],
)
def test_every_method_has_the_same_gradients(method):
    bench = prepared(tiny(*f"method={method}".split(), "lr_scale=50"))
    with torch.no_grad():
        for p in bench.net.parameters():
            if p.requires_grad and not p.any():
                p.normal_(std=0.05)  # adapters begin as no change
    same(bench.net, bench.steps[0][0])


def test_the_backward_pass_may_be_in_another_thread():
    """As CUDA's is: there no row is set."""
    bench = prepared(tiny("method=lora"))
    batch = bench.steps[0][0]
    loss, gradients, _ = step(bench.net, batch)
    gradient_checkpointing.enable(bench.net)
    bench.net.zero_grad()
    again = loop.summed_loss(bench.net, batch)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(again.backward).result()
    assert float(again) == pytest.approx(loss, rel=1e-6)
    for name, p in bench.net.named_parameters():
        if p.requires_grad:
            assert torch.allclose(p.grad, gradients[name], atol=1e-7), name


@pytest.mark.long
def test_a_cell_comes_to_the_same_in_less_memory(tmp_path):
    same_cell = ("method=lora", "train.batch_size=4", "infer.repeats=1")
    one, other = run_tiny(tmp_path, *same_cell), run_tiny(tmp_path, *same_cell, ON)
    assert (one.status, other.status) == ("ok", "ok"), other.failure
    assert one.cell.id != other.cell.id
    assert [point.loss for point in other.train.loss] == pytest.approx([p.loss for p in one.train.loss], rel=1e-6)
    assert other.validation[-1].loss == pytest.approx(one.validation[-1].loss, rel=1e-6)
    assert [(s.task, s.value) for s in other.scores] == [(s.task, s.value) for s in one.scores]
    assert other.probe.peak.activations < one.probe.peak.activations
    assert other.probe.flops_per_token == one.probe.flops_per_token
    assert 0 < other.probe.recomputed_flops_per_token < one.probe.flops_per_token / 2
    assert one.probe.recomputed_flops_per_token == 0
    assert other.probe.attention == {name: 2 * n for name, n in one.probe.attention.items()}
    assert other.inference.keys() == one.inference.keys()


def test_a_model_that_writes_keeps_its_cache():
    net = prepared(tiny("method=lora")).net
    gradient_checkpointing.enable(net)
    net.eval()
    prompt = torch.tensor([[5, 9, 3, 7]])
    with torch.inference_mode():
        out = net(input_ids=prompt, use_cache=True)
        assert out[decoding.cache_keyword(net)].get_seq_length() == 4
        tokens = inference_speed.decode(net, prompt, 3, decoding.greedy)[0]
        row = torch.cat([prompt, tokens], dim=1)
        assert torch.equal(net(input_ids=row, use_cache=False).logits[:, 3:-1].argmax(-1), tokens)


# Predictions


@pytest.mark.long
@pytest.mark.parametrize(("method", "flat"), [("lora", True), ("qlora", False), ("full", True)])
def test_shallow_models_tell_of_a_deeper_one(monkeypatch, method, flat):
    cell, config = tiny(f"method={method}", ON), loading.config_of(tiny("method=lora").settings.model)
    shape, layout = shapes.Shape([[(64, 30), (50, 20)]], 1, 114, 114, True), batching.Layout(flat=flat)
    deeper = functools.partial(
        prediction.Predictor._line, cell=cell, shape=shape, times=1, layout=layout, architecture=None
    )
    monkeypatch.setattr(loading, "config_of", lambda settings: empty_weights.with_depth(copy.deepcopy(config), 4))
    shallow = deeper(prediction.Predictor(None, "fp32"))
    monkeypatch.setattr(empty_weights, "alike", lambda *asked: False)  # then all 4 layers are built
    deep = deeper(prediction.Predictor(None, "fp32"))
    assert deep.others.pop("flops_per_token") == pytest.approx(shallow.others.pop("flops_per_token"))
    assert (shallow.windows, shallow.others) == (deep.windows, deep.others)


@pytest.mark.long
@pytest.mark.parametrize(("method", "gib"), [("qlora", 8), ("lora", 17)])
def test_eight_billion_weights_fit_with_one_sequence_of_2048_tokens(cell, method, gib):
    cell = cell("model=llama_3_1_8b", f"method={method}", "train.batch_size=1")
    assert cell.settings.train.gradient_checkpointing
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "llama_3_1_8b.yaml").architecture)
    planner = prediction.Predictor(None, auto="bf16")
    cell.settings = prediction._decided(cell.settings, "bf16")
    shape = shapes.Shape([[(2048, 0)]], 1, 2048, 2048, True)
    line = planner._line(cell, shape, 1, planner._layout(cell, architecture), architecture)
    assert sum(line.peak.values()) < gib * 2**30


def test_steps_in_the_backward_pass_find_layers_computed_from_weights_not_yet_stepped():
    """A weight's gradient is whole only once every layer that has the weight was computed again."""

    def trained(again: bool) -> tuple[list[float], list[torch.Tensor]]:
        bench = prepared(tiny("method=galore_layer", "train.max_grad_norm=null", "lr_scale=20"))
        bench.net.train()
        if again:
            gradient_checkpointing.enable(bench.net)
        take = functools.partial(loop.take_step, bench.net, bench.optimizer)
        losses = [float(take(micro, None, bench.accelerator, lambda part: None)[0]) for micro in bench.steps]
        return losses, list(bench.net.parameters())

    (losses, weights), (again, others) = trained(False), trained(True)
    assert again == pytest.approx(losses, rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(weights, others, strict=True))


# What is a part of a cell, and what can't be


def test_checkpointing_is_part_of_tuned_cells_and_defaults_to_the_models_setting(cell):
    for asked in ("train.gradient_checkpointing=false", "model.gradient_checkpointing=false"):
        assert cell("method=lora", asked) == cell("method=lora")
    assert cell("method=lora", ON).id == cell("method=lora", "model.gradient_checkpointing=true").id
    assert cell("method=lora", ON).id != cell("method=lora").id
    assert cell("method=base", ON).id == cell("method=base").id
    large = cell("method=lora", "model=llama_3_2_3b")
    assert large.settings.train.gradient_checkpointing
    assert not cell("method=lora", "model=llama_3_2_1b").settings.train.gradient_checkpointing


@pytest.mark.parametrize("method", ["prefix_tuning", "cartridge"])
def test_keys_and_values_that_are_learned_are_refused(cell, method):
    with pytest.raises(UserError, match=r"can't be combined with train\.gradient_checkpointing=true: its tokens are"):
        cell(f"method={method}", "model=llama_3_1_8b")
    cell(f"method={method}", "model=llama_3_1_8b", "train.gradient_checkpointing=false")


def test_an_architecture_that_can_not_is_refused(tmp_path):
    path = built(tmp_path, "openai-gpt")
    checks.check(cell_of(path, "method=full"))
    with pytest.raises(UserError, match=r"checkpointing=true requires an .*got OpenAIGPTLMHeadModel"):
        checks.check(cell_of(path, "method=full", ON))
