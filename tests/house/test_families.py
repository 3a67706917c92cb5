"""docs/families.md is what the script makes, and what every family gets for adapters, frozen parts and refusals."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

import pytest
import torch
from job_helpers import no_peak  # noqa: F401
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import ViTConfig

from harness.config import ROOT
from harness.errors import UserError
from harness.job.models import adapting, checks, loading, structure

sys.path.append(str(ROOT / "docs"))
import families

pytestmark = pytest.mark.usefixtures("own_precision")  # the page's cells are trained in bf16
PAGE = families.TARGET.read_text(encoding="utf-8")
CPU = torch.device("cpu")
BY_KIND = {family.kind: family for family in families.FAMILIES}
MULTIMODAL = ("gemma3", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return functools.cache(lambda kind: families.built(BY_KIND[kind], tmp_path_factory.mktemp(kind)))


def asked(model, method, **adapt):
    """The cell of a method on a model, with other settings in its slot `adapt`."""
    cell = families.cell_of(model, method)
    slots = cell.settings.method
    changed = replace(slots, adapt=(slots.adapt or {}) | adapt) if adapt else slots
    return replace(cell, settings=replace(cell.settings, method=changed))


def adapted_layers(net):
    return {name for name, layer in net.named_modules() if isinstance(layer, BaseTunerLayer)}


@pytest.mark.long
def test_the_page_is_what_every_method_on_every_family_leads_to():
    assert families.page() == PAGE


def test_the_page_has_the_words_of_its_script():
    assert PAGE.startswith(families.HEAD)
    assert PAGE.endswith(families.FOOT)


@pytest.mark.parametrize("kind", [kind for kind in BY_KIND if kind != "t5"])
def test_the_page_names_the_layers_that_each_family_gets_adapters_on(folder, kind):
    (line,) = (line for line in PAGE.splitlines() if f"| `{kind}` |" in line)
    assert line.split(" | ")[-1].rstrip(" |") == families.adapted(folder(kind))
    assert line.count("| yes ") == len(families.METHODS)


@pytest.mark.parametrize("kind", MULTIMODAL)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "fc1", "qkv", "proj"]])
def test_adapters_are_on_the_language_model_alone(folder, kind, targets):
    cell = asked(folder(kind), "lora", target_modules=targets)
    net = adapting.adapt(loading.load(cell, CPU), cell)
    layers = adapted_layers(net)
    assert layers
    assert all(".language_model.layers." in name for name in layers)


@pytest.mark.parametrize("kind", MULTIMODAL)
@pytest.mark.parametrize("method", ["full", "galore", "bitfit"])
def test_what_text_does_not_pass_through_is_frozen(folder, kind, method):
    cell = asked(folder(kind), method) if method != "bitfit" else bitfit(folder(kind))
    net = adapting.adapt(loading.load(cell, CPU), cell)
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert trained
    assert all("language_model" in name or "lm_head" in name for name in trained)
    loss = net(input_ids=torch.arange(2, 32)[None], labels=torch.arange(2, 32)[None]).loss
    loss.backward()
    assert {name for name, weight in net.named_parameters() if weight.grad is not None} == trained


def bitfit(model):
    return asked(
        model, "full", _target_="harness.job.models.adapting.only", _partial_=True, names=r"norm[^.]*\.weight$"
    )


def test_the_layers_of_a_vision_tower_of_equal_depth_are_not_taken_for_the_decoders(folder):
    net = loading.load(asked(folder("gemma3"), "base"), CPU)
    layers = structure.decoder_layers(net, net.config)
    net.model.vision_tower.encoder.layers.extend(net.model.vision_tower.encoder.layers[:1])
    assert structure.decoder_layers(net, net.config) is layers is net.model.language_model.layers


@pytest.mark.parametrize("kind", ["mamba2", "falcon_h1", "granitemoehybrid"])
def test_a_layer_whose_weights_kernels_read_gets_no_adapter_and_is_not_packed(folder, kind):
    cell = asked(folder(kind), "qlora")
    net = adapting.adapt(loading.load(cell, CPU), cell)
    layers = {name: layer for name, layer in net.named_modules() if name.endswith(("mixer.out_proj", "mamba.out_proj"))}
    assert layers
    assert not layers.keys() & adapted_layers(net)
    assert all(layer.weight.dtype is torch.float32 for layer in layers.values())


def test_an_encoder_decoder_is_refused_in_a_sentence(folder):
    with pytest.raises(
        UserError, match=r"^\S+ is an encoder-decoder \(t5\), and only decoders are trained here; .{,60}$"
    ):
        checks.check(asked(folder("t5"), "lora"))


def test_a_model_that_writes_no_text_is_refused_in_a_sentence(tmp_path):
    ViTConfig(hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^\S+ is a model of the type vit, which transformers has no text .{,70}$"):
        checks.check(asked(tmp_path, "lora"))


@pytest.mark.parametrize("method", ["base", "lora"])
def test_a_multimodal_model_is_trained_timed_and_scored_on_text(folder, tmp_path, no_peak, method):  # noqa: F811
    record = families.outcome(folder("gemma3"), method, tmp_path)
    assert record.status == "ok", record.failure
    assert record.inference["base"].decode_seconds
