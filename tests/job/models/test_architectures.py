"""Every architecture with every method, from load to scores on a tiny random model; what can't be is one sentence."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    EXPERTS,
    MIXTURES,
    PADDED,
    RANK,
    TIED,
    built,
    cell_of,
)
from hydra.utils import instantiate
from job_helpers import run_here
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.errors import UserError
from harness.job.models import adapting, checks, loading, quantisation, structure
from harness.job.predict import prediction

METHODS = ("base", "full", "lora", "qlora", "dora", "galore")
PAIRS = [(kind, method) for kind in ARCHITECTURES for method in METHODS if kind not in PADDED or method == "lora"]
BF16 = "model.dtype=bfloat16"
EXPERTS_ADAPTED = "+method.adapt.target_parameters=[experts.down_proj,experts.gate_up_proj]"
REFUSED = {  # of a mixture
    ("lora_8bit",): r"packs the experts in stacks, \d+% of its weights, in 4 bits alone; use method=qlora",
    ("base_int8",): r"in 4 bits alone; use method=qlora, or method=base_nf4",
    ("galore_8bit",): r"does not take experts in stacks; use method=galore",
    ("muon",): r"does not take experts in stacks; use method=galore",
    ("dora", EXPERTS_ADAPTED): r"use_dora=True; without method\.adapt\.target_parameters it leaves out the experts",
    ("qlora", EXPERTS_ADAPTED): r"adapts experts in 16 bits alone; use method=lora",
    ("lora", "+method.adapt.target_parameters=[router]"): r"such as \[experts\.down_proj,experts\.gate_up_proj\], got",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return functools.cache(lambda kind: built(tmp_path_factory.mktemp(kind), kind, **ARCHITECTURES[kind]))


@pytest.fixture(scope="module")
def record_of(folder, tmp_path_factory):
    """record_of(kind, method): the pair run once, from load to scores."""
    out = tmp_path_factory.mktemp("out")
    made = functools.cache(lambda kind, method: run_here(out, cell_of(folder(kind), f"method={method}")))
    return made


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_a_pair_runs_from_load_to_scores(record_of, folder, kind, method):
    record = record_of(kind, method)
    assert record.status == "ok", record.failure
    assert (record.train.steps if record.train else None) == (None if method == "base" else 2)
    assert record.environment["speedups"]["padding_free"] == PADDED.get(kind, "on")
    windowed = "sliding_window" in ARCHITECTURES[kind]
    said = record.environment["speedups"]["shared_prefix"]
    assert said.endswith("exceed the attention's window of 24") if windowed else said == "on"
    assert [score.n for score in record.scores] == [2, 2]
    assert set(record.contamination) == (set() if method == "base" else {"facts"})

    base = AutoModelForCausalLM.from_pretrained(folder(kind))
    total, added = sum(p.numel() for p in base.parameters()), adapter(base, method)
    assert record.parameters.total == total + added
    assert record.parameters.trainable == {"base": 0, "full": total, "galore": total}.get(method, added)
    if added:
        assert record.merge.merged == (method != "qlora")
        assert ("left_out" in record.environment) == (kind in MIXTURES)
        assert 0 < record.merge.max_logit_difference < 1e-3
    if method != "qlora":
        assert record.disk.model == 4 * total  # a tied head is no second copy


def test_logits_that_are_capped_never_meet_sdpa_which_would_not_cap_them(folder, monkeypatch):
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)  # as transformers 5.17 has it
    path = folder("gemma2")
    assert AutoModelForCausalLM.from_pretrained(path).config._attn_implementation == "sdpa"
    cell = cell_of(path, "method=base")
    assert loading.load(cell, torch.device("cpu")).config._attn_implementation == "eager"


def adapter(base: nn.Module, method: str) -> int:
    """Weights that the method adds: r times the sides of each matrix but the head's, and a magnitude for each row."""
    if method not in ("lora", "qlora", "dora"):
        return 0
    layers = [module for name, module in base.named_modules() if is_matrix(module) and name not in HEADS]
    sides = [sum(layer.weight.shape) for layer in layers]
    magnitudes = sum(layer.weight.shape[type(layer) is Conv1D] for layer in layers) if method == "dora" else 0
    return RANK * sum(sides) + magnitudes


HEADS = {"lm_head", "embed_out"}


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_nf4_holds_every_matrix_but_the_head(folder, kind):
    plain, packed = (
        loading.load(cell_of(folder(kind), f"method={m}"), torch.device("cpu")) for m in ("base", "base_nf4")
    )
    wanted = {name for name, module in plain.named_modules() if is_matrix(module) and name not in HEADS}
    found = {
        name
        for name, module in packed.named_modules()
        if type(getattr(module, "weight", None)).__name__ == "Params4bit"
    }
    assert found == wanted


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in PADDED])
def test_a_tied_head_is_trained_once(record_of, folder, kind):
    tied = kind in TIED
    base = AutoModelForCausalLM.from_pretrained(folder(kind))
    assert (base.get_input_embeddings().weight is base.get_output_embeddings().weight) == tied
    gradients = record_of(kind, "full").probe.gradients
    assert gradients == 4 * sum(p.numel() for p in base.parameters())


# Mixtures of experts


@pytest.mark.parametrize("asked", REFUSED, ids=" ".join)
def test_what_does_not_work_with_experts_is_refused_with_what_does_before_anything_is_launched(folder, asked):
    method, *others = asked
    with pytest.raises(UserError, match=REFUSED[asked]):
        checks.check(cell_of(folder("qwen3_moe"), f"method={method}", *others))


def test_experts_are_left_as_they_are_and_the_setting_that_adapts_them_is_told(folder):
    note = checks.check(cell_of(folder("qwen3_moe"), "method=lora"))
    assert re.fullmatch(
        r"method=lora leaves the experts of \S+ as they are, 14% of the weights\. To adapt them, set "
        rf"'{re.escape(EXPERTS_ADAPTED)}'\.",
        note,
    )
    assert checks.check(cell_of(folder("qwen3_moe"), "method=dora")).endswith("of the weights.")
    assert checks.check(cell_of(folder("qwen3_moe"), "method=lora", EXPERTS_ADAPTED)) is None
    assert checks.check(cell_of(folder("qwen3_moe"), "method=full")) is None
    assert checks.check(cell_of(folder("llama"), "method=lora")) is None


@pytest.mark.parametrize("method", ["lora", "gralora"])  # the second has stacks of matrices
def test_adapters_are_no_experts(folder, method):
    assert checks.check(cell_of(folder("llama"), f"method={method}")) is None


def test_all_experts_are_adapted_where_they_are_named_and_no_router_is(folder):
    asked = cell_of(folder("qwen3_moe"), "method=lora", EXPERTS_ADAPTED)
    net = adapting.adapt(loading.load(asked, torch.device("cpu")), asked)
    adapted = {
        name.partition(".lora_")[0].rpartition("layers.")[2] for name, p in net.named_parameters() if p.requires_grad
    }
    attention = {f"{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qkvo"}
    assert adapted == attention | {f"{i}.mlp.experts{inner}" for i in (0, 1) for inner in ("", ".base_layer")}


def test_a_rank_is_held_against_the_matrix_of_an_expert(folder):
    checks.check(cell_of(folder("qwen3_moe"), "method=lora", "rank=16"))
    with pytest.raises(UserError, match=r"rank must be at most \d+, the size of \S*(experts|[kv]_proj).*, got rank=17"):
        checks.check(cell_of(folder("qwen3_moe"), "method=lora", "rank=17", EXPERTS_ADAPTED))


def test_nf4_holds_the_experts_and_their_products_are_of_the_packed_weights(folder):
    plain, packed = (
        loading.load(cell_of(folder("qwen3_moe"), f"method={m}"), torch.device("cpu")) for m in ("base", "base_nf4")
    )
    assert structure.count(packed) == structure.count(plain)
    packed_bytes = sum(p.nbytes for name, p in packed.named_parameters() if "experts" in name)
    assert packed_bytes == sum(p.numel() for name, p in plain.named_parameters() if "experts" in name) / 2
    stack, rounded = (net.model.layers[0].mlp.experts.down_proj for net in (plain, packed))
    assert rounded.shape == stack.shape
    assert 0 < (rounded - stack).abs().max() < 0.5 * stack.abs().max()
    quantisation.unpack_experts(packed)
    assert type(packed.model.layers[0].mlp.experts.down_proj) is nn.Parameter
    assert torch.equal(packed.model.layers[0].mlp.experts.down_proj, rounded)


@pytest.mark.parametrize("method", ["galore", "galore_rsvd", "galore_bf16"])
def test_galore_projects_each_expert_by_itself(folder, method):
    dtype = ["model.dtype=bfloat16"] if method == "galore_bf16" else []
    cell = cell_of(folder("qwen3_moe"), f"method={method}", *dtype)
    net = loading.load(cell, torch.device("cpu"))
    optimizer = instantiate(cell.settings.method.optim, _convert_="all")(net)
    net(input_ids=torch.arange(2, 32)[None], labels=torch.arange(2, 32)[None]).loss.backward()
    stack = net.model.layers[0].mlp.experts.gate_up_proj
    before = stack.detach().clone()
    optimizer.step()
    state = optimizer.state[stack].get("inner", optimizer.state[stack])
    assert tuple(state["exp_avg"].shape) == (4, 32, RANK)
    assert len(vars(state["projector"])) == 4
    change = (stack.detach() - before).float()
    if method != "galore_bf16":  # which is rounded
        assert [torch.linalg.matrix_rank(each, rtol=1e-3).item() for each in change] == [RANK] * 4


def test_parts_beside_experts_and_gates_of_one_output_get_no_adapter(tmp_path):
    shared = {"shared_expert_intermediate_size": 16, "num_key_value_heads": 2}
    cell = cell_of(built(tmp_path, "qwen2_moe", **EXPERTS, **shared, mlp_only_layers=[0]), "method=lora")
    net = adapting.adapt(loading.load(cell, torch.device("cpu")), cell)
    adapted = {name.split(".")[-4] for name, p in net.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    checks.check(cell_of(tmp_path, "method=galore"))  # whose rank is above the output of the gate


# What else an architecture may be


@pytest.mark.parametrize("kind", ["mamba", "bart"])
def test_models_of_another_build_are_checked_all_the_same(tmp_path, kind):
    more = {"mamba": {"state_size": 4}, "bart": {"d_model": 32, "decoder_layers": 2}}[kind]
    checks.check(cell_of(built(tmp_path, kind, **more), "method=full"))


def test_a_model_that_multiplies_with_packed_weights_itself_is_refused(tmp_path):
    path = built(tmp_path, "mamba", state_size=4)
    with pytest.raises(UserError, match=r"method=base_nf4 can't be .* multiplies with weights of linear"):
        checks.check(cell_of(path, "method=base_nf4"))


@pytest.mark.long
def test_a_mixture_is_planned_in_the_format_that_torch_can_predict(folder):
    cells = (cell_of(folder("qwen3_moe"), "method=lora", f"model.dtype={d}") for d in ("bfloat16", "float32"))
    planner = prediction.Predictor(None, "bf16")
    found = planner.predict(next(cells), None)
    base = AutoModelForCausalLM.from_pretrained(folder("qwen3_moe"))
    assert found["peak"]["weights"] == pytest.approx(2 * sum(p.numel() for p in base.parameters()), rel=1e-3)
    with pytest.raises(UserError, match=r"require model\.dtype=bfloat16"):
        planner.predict(next(cells), None)


@pytest.mark.long
def test_packed_experts_are_planned(folder):
    found = {
        method: prediction.Predictor(None, "bf16").predict(cell_of(folder("qwen3_moe"), f"method={method}", BF16), None)
        for method in ("lora", "qlora")
    }
    experts = sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(folder("qwen3_moe")).parameters() if p.ndim == 3
    )
    saved = found["lora"]["peak"]["weights"] - found["qlora"]["peak"]["weights"]
    assert saved > experts  # of 2 bytes each; tables of scales are large beside so small ones
