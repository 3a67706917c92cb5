"""Every architecture with every method, from load to scores on a tiny random model; what can't be is one sentence."""

from __future__ import annotations

import functools

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    EXPERTS,
    GROUPED,
    MIXTURES,
    PADDED,
    RANK,
    TIED,
    built,
    cell_of,
)
from job_helpers import run_here
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.errors import UserError
from harness.job.models import adapting, checks, loading
from harness.job.predict import prediction

METHODS = ("base", "full", "lora", "qlora", "dora", "galore")
PAIRS = [(kind, method) for kind in ARCHITECTURES for method in METHODS if kind not in PADDED or method == "lora"]
NOT_OF_EXPERTS = {
    "qlora": r"the experts in stacks, would not be quantised",
    "base_nf4": r"the experts in stacks, would not be quantised",
    "galore": r"the experts in stacks, would not be matrices to its optimizer",
    "dora": r"use_dora=True; method\.adapt\.target_modules=\[k_proj,o_proj,q_proj,v_proj\] leaves out the experts",
}
REFUSED = {(kind, method) for kind in MIXTURES for method in NOT_OF_EXPERTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return functools.cache(lambda kind: built(tmp_path_factory.mktemp(kind), kind, **ARCHITECTURES[kind]))


@pytest.fixture(scope="module")
def record_of(folder, tmp_path_factory):
    """record_of(kind, method): the pair run once, from load to scores."""
    out = tmp_path_factory.mktemp("out")
    made = functools.cache(lambda kind, method: run_here(out, cell_of(folder(kind), f"method={method}")))
    return made


@pytest.mark.parametrize(("kind", "method"), [pair for pair in PAIRS if pair not in REFUSED])
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
    stacks = [tuple(p.shape) for p in base.parameters() if p.ndim == 3]
    sides = [sum(layer.weight.shape) for layer in layers] + [a + b for n, a, b in stacks for _ in range(n)]
    magnitudes = sum(layer.weight.shape[type(layer) is Conv1D] for layer in layers) if method == "dora" else 0
    return RANK * sum(sides) + magnitudes


HEADS = {"lm_head", "embed_out"}


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in MIXTURES])
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


@pytest.mark.parametrize("method", NOT_OF_EXPERTS)
def test_a_method_that_would_pass_over_the_experts_is_refused_before_anything_is_launched(folder, method):
    with pytest.raises(UserError, match=rf"method={method} can't be applied to .*{NOT_OF_EXPERTS[method]}"):
        checks.check(cell_of(folder("qwen3_moe"), f"method={method}"))


def test_the_experts_can_be_left_as_they_are(folder):
    cell = cell_of(folder("qwen3_moe"), "method=dora", "method.adapt.target_modules=[q_proj,v_proj]")
    checks.check(cell)


def test_all_experts_are_adapted_and_no_router_is(folder):
    base = loading.load(cell_of(folder("qwen3_moe"), "method=lora"), torch.device("cpu"))
    net = adapting.adapt(base, cell_of(folder("qwen3_moe"), "method=lora"))
    adapted = {
        name.partition(".lora_")[0].rpartition("layers.")[2] for name, p in net.named_parameters() if p.requires_grad
    }
    attention = {f"{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qkvo"}
    assert adapted == attention | {f"{i}.mlp.experts{inner}" for i in (0, 1) for inner in ("", ".base_layer")}


def test_a_rank_is_held_against_the_matrix_of_an_expert(folder):
    checks.check(cell_of(folder("qwen3_moe"), "method=lora", "rank=16"))
    with pytest.raises(UserError, match=r"rank must be at most \d+, the size of \S*(experts|[kv]_proj).*, got rank=17"):
        checks.check(cell_of(folder("qwen3_moe"), "method=lora", "rank=17"))


def test_the_experts_that_all_tokens_share_are_adapted_too(tmp_path):
    shared = {"shared_expert_intermediate_size": 16, "num_key_value_heads": 2}
    cell = cell_of(built(tmp_path, "qwen2_moe", **EXPERTS, **shared), "method=lora", "rank=1")
    net = adapting.adapt(loading.load(cell, torch.device("cpu")), cell)
    adapted = {name.split(".")[-4] for name, p in net.named_parameters() if "shared" in name and p.requires_grad}
    assert adapted == {"gate_proj", "up_proj", "down_proj", "shared_expert_gate"}


def test_a_matrix_that_peft_passes_over_is_named(tmp_path):
    """Peft takes the names of this mixture's one plain layer for those of its experts."""
    path = built(tmp_path, "qwen3_moe", **GROUPED, **EXPERTS, mlp_only_layers=[0])
    with pytest.raises(UserError, match=r"3 of \d+ have no adapter, such as \S*layers\.0\.mlp"):
        checks.check(cell_of(path, "method=lora"))


# What else an architecture may be


@pytest.mark.parametrize("kind", ["mamba", "bart"])
def test_models_of_another_build_are_checked_all_the_same(tmp_path, kind):
    more = {"mamba": {"state_size": 4}, "bart": {"d_model": 32, "decoder_layers": 2}}[kind]
    checks.check(cell_of(built(tmp_path, kind, **more), "method=full"))


def test_a_model_that_multiplies_with_packed_weights_itself_is_refused(tmp_path):
    path = built(tmp_path, "mamba", state_size=4)
    with pytest.raises(UserError, match=r"method=base_nf4 can't be .* multiplies with weights of linear"):
        checks.check(cell_of(path, "method=base_nf4"))


def test_a_mixture_is_planned_in_the_format_that_torch_can_predict(folder):
    cells = (cell_of(folder("qwen3_moe"), "method=lora", f"model.dtype={d}") for d in ("bfloat16", "float32"))
    planner = prediction.Predictor(None, "bf16")
    found = planner.predict(next(cells), None)
    base = AutoModelForCausalLM.from_pretrained(folder("qwen3_moe"))
    assert found["peak"]["weights"] == pytest.approx(2 * sum(p.numel() for p in base.parameters()), rel=1e-3)
    with pytest.raises(UserError, match=r"require model\.dtype=bfloat16"):
        planner.predict(next(cells), None)
