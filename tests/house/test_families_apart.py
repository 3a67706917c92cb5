"""What the page of families does not run: experts in 8 bits or sharded, calibration and card of a multimodal model."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import name2qmap
from job_helpers import no_peak, tiny  # noqa: F401
from torch.distributed.fsdp import FSDPModule

from harness.config import ROOT
from harness.errors import UserError
from harness.job.models import checks, empty_weights, loading, structure
from harness.job.phases import load
from harness.job.predict import calibrating
from harness.job.run_cell import run_cell
from harness.job.training import distributed, loss
from harness.protocol import CalibrateDevice, PlannedCell, RunCell
from harness.record import model_card

sys.path.append(str(ROOT / "docs"))
import families

pytestmark = pytest.mark.usefixtures("own_precision")  # the page's cells are trained in bf16
CPU = torch.device("cpu")
BY_KIND = {family.kind: family for family in families.FAMILIES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return functools.cache(lambda kind: families.built(BY_KIND[kind], tmp_path_factory.mktemp(kind)))


def cell_of(model, method, **train):
    cell = families.cell_of(model, method)
    settings = replace(cell.settings, train=replace(cell.settings.train, **train))
    return replace(cell, settings=settings)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("method", ["lora_8bit", "base_int8"])
def test_experts_in_8_bits_are_refused_in_a_sentence(folder, kind, method):
    said = rf"^method={method} can't be applied to .*in 4 bits alone; use method=qlora, or method=base_nf4"
    with pytest.raises(UserError, match=said):
        checks.check(cell_of(folder(kind), method))


@pytest.mark.parametrize("method", ["qlora", "qdora"])
def test_packed_experts_are_not_sharded(folder, method):
    said = r"experts in stacks are sharded as plain weights alone; use method=lora or method=full\.$"
    with pytest.raises(UserError, match=said):
        checks.check(cell_of(folder("qwen3_moe"), method, parallel="fsdp", devices=2))
    assert not any(table.is_meta for table in name2qmap.values()), "no 4-bit model could be loaded in this process"


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_experts_in_fp32_compute_without_values_as_sharding_has_them(folder, kind):
    """torch has no shapes of grouped products in fp32, so every device but the first broke off."""
    cell = cell_of(folder(kind), "lora")
    net = empty_weights.shell(cell, loading.config_of(cell.settings.model))[0]
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    before = net.get_base_model().get_experts_implementation()
    with load._valueless(net):
        assert loss.enable(net) == "on: chunked"
    assert net.get_base_model().get_experts_implementation() == before


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("qwen3", {"Qwen3DecoderLayer"}),
        ("deepseek_v3", {"DeepseekV3DecoderLayer", "DeepseekV3TopkRouter"}),  # whose router stays in fp32
    ],
)
def test_what_a_full_model_keeps_in_another_dtype_is_a_shard_of_its_own(folder, kind, classes):
    cell = tiny("method=full", "model.dtype=bfloat16", f"model.path={folder(kind)}")
    assert {*distributed.sharded_classes(loading.load(cell, CPU))} == classes


def test_a_model_with_several_towers_is_sharded_by_layers(folder):
    """transformers also names classes of a tower that such a model does not have."""
    net = empty_weights.shell(cell := cell_of(folder("gemma3"), "full"), loading.config_of(cell.settings.model))[0]
    with distributed.pretended(2) as rank:
        rank.accelerator(sharded=True, bf16=False).prepare_model(net)
    layers = structure.decoder_layers(net, net.config)
    assert layers is not None
    assert all(isinstance(layer, FSDPModule) for layer in layers)


@pytest.mark.long
@pytest.mark.slow
def test_a_multimodal_model_is_calibrated(folder):
    cell = cell_of(folder("qwen2_5_vl"), "lora", max_length=32)
    assert calibrating.answer(CalibrateDevice([PlannedCell(cell)]), lambda event: None).kernels


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "auto"), [("qwen2_5_vl", "AutoModelForImageTextToText"), ("qwen3", None)])
def test_the_card_loads_the_model_by_the_class_that_can(folder, kind, auto, tmp_path):
    cell = cell_of(folder(kind), "lora")
    record = run_cell(RunCell(cell, "families", str(tmp_path / f"{cell.name}.json")), lambda event: None)
    assert record.environment.get("auto_class") == auto
    for form in ("adapter", "merged"):
        card = model_card.text(record, form)
        assert f"{auto or 'AutoModelForCausalLM'}.from_pretrained(" in card
        assert "{" not in card.split("```")[1]
        assert ("AutoPeftModelForCausalLM" in card) == (auto is None and form == "adapter")
