"""LoRA: its parameters on the article's model, its stability at very low rank, and what it struggles with."""

from __future__ import annotations

import pytest
import torch
from judged_study import JudgedStudy
from peft import LoraConfig, get_peft_model
from records import make_record
from transformers import OPTConfig, OPTForCausalLM

from harness.plugins.articles.beyond_lora import ARTICLE, gpt3
from harness.plugins.articles.beyond_lora.data_sets import NUMERICAL, trained_on
from harness.plugins.articles.claims import OPEN, REFUTED, SUPPORTED, TOO_SMALL
from harness.plugins.articles.evidence import Evidence


@pytest.fixture
def study(tmp_path):
    return JudgedStudy(tmp_path, ARTICLE.claims)


# Parameters


def test_gpt3_is_counted_as_a_model_of_its_shape_is():
    """OPT has GPT-3's shape (Zhang et al. 2022), but two more positions."""
    width, layers = gpt3.WIDTH, 2
    config = OPTConfig(
        vocab_size=gpt3.VOCABULARY,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=96,
        max_position_embeddings=gpt3.POSITIONS,
    )
    with torch.device("meta"):
        model = OPTForCausalLM(config)
        counted = sum(weight.numel() for weight in model.parameters())
        lora = get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    a_layer = (gpt3.weights() - (gpt3.VOCABULARY + gpt3.POSITIONS + 2) * width) // gpt3.LAYERS
    assert counted - 2 * width == gpt3.weights() - (gpt3.LAYERS - layers) * a_layer
    assert lora.get_nb_trainable_parameters()[0] == gpt3.adapter(3) * layers // gpt3.LAYERS


def test_gpt3_has_the_weights_that_the_papers_give():
    assert gpt3.weights() == pytest.approx(175e9, rel=0.005)
    assert gpt3.adapter(1) == pytest.approx(4.7e6, rel=0.01)  # Hu et al. 2021, table 4
    assert gpt3.adapter(8) == pytest.approx(37.7e6, rel=0.01)


def test_parameters_are_judged_on_the_articles_model_and_the_records_are_the_remark(study):
    assert study.judgement("lora-parameters").effect is None
    study.add("lora", 16)
    study.add("lora", 1).parameters.trainable = 50_000
    found = study.judgement("lora-parameters")
    assert found.decision == SUPPORTED
    assert found.effect.value == gpt3.weights() / gpt3.adapter(1)
    assert found.why.startswith("Counted on GPT-3 175B; the smallest adapter of demo (r=1) cuts smollm2-135m by ")
    assert len(found.records) == 1


# Stability


def spreads(study, low, high, seeds=10):
    for rank, spread in ((2, low), (16, high)):
        for seed in range(seeds):
            study.add("lora", rank, seed, loss=1 + spread * (seed % 5 - 2) / 10)


@pytest.mark.parametrize(
    ("low", "seeds", "expected"),
    [(0.04, 10, SUPPORTED), (0.002, 10, REFUTED), (0.01, 100, TOO_SMALL), (0.02, 10, OPEN), (0.04, 3, OPEN)],
)
def test_a_spread_is_judged_by_one_bound(study, low, seeds, expected):
    spreads(study, low, 0.01, seeds)
    found = study.judgement("low-rank-spread")
    assert (found.decision, found.seeds) == (expected, seeds)
    assert found.effect.value == pytest.approx(low / 0.01, rel=0.01)


def test_the_interval_of_spreads_is_that_of_two_variances(study):
    """At 9 and 9 degrees of freedom F's 97.5% quantile is 4.026 (any table)."""
    spreads(study, 0.02, 0.02)
    found = study.judgement("low-rank-spread")
    assert found.effect == pytest.approx((1, 4.026**-0.5, 4.026**0.5), rel=1e-3)


@pytest.mark.parametrize(("dora", "expected"), [(0.002, SUPPORTED), (0.04, REFUTED), (0.01, OPEN)])
def test_dora_is_more_stable_if_loras_losses_vary_more(study, dora, expected):
    for method, spread in (("lora", 0.01), ("dora", dora)):
        for seed in range(10):
            study.add(method, 16, seed, loss=1 + spread * (seed % 5 - 2) / 10)
    found = study.judgement("dora-stability")
    assert found.decision == expected
    assert found.effect.value == pytest.approx(0.01 / dora, rel=0.01)


def test_dora_at_other_ranks_says_nothing_of_its_stability(study):
    study.seeds("lora", 8)
    study.seeds("dora", 16)
    assert study.judgement("dora-stability").why == "No finished lora and dora of the same rank"


def test_only_rates_near_the_best_of_a_rank_count_as_divergence(study):
    """Ten times the best rate is near, more is not; the best of rank 4 is 2e-4 and of rank 16 1e-4."""
    for rank, best in ((4, 2e-4), (16, 1e-4)):
        for lr in (2e-5, 1e-4, 2e-4, 1e-3, 2e-3, 1e-2):
            for seed in range(3):
                study.add("lora", rank, seed, lr=lr, loss=1 if lr == best else 1.2)
                if lr >= 1e-3 and rank == 4:
                    study.records[-1].status = "diverged"
    found = study.judgement("low-rank-divergence")
    assert found.effect.value == pytest.approx(1 / 4)  # of 2e-5, 1e-4, 2e-4 and 1e-3, the last
    assert len(found.records) == 2 * 4 * 3


def test_a_rank_of_which_nothing_finished_has_no_best_rate(study):
    study.seeds("lora", 16)
    study.add("lora", 4).status = "diverged"
    assert study.judgement("low-rank-divergence").effect is None


# What LoRA struggles with


@pytest.mark.parametrize(
    ("name", "data", "task"), [("lora-numerical", "gsm8k", "gsm8k"), ("lora-niche", "facts_short", "facts_short")]
)
@pytest.mark.parametrize(("full", "expected"), [(0.6, SUPPORTED), (0.4, REFUTED), (0.5, TOO_SMALL)])
def test_lora_struggles_where_full_scores_more(study, name, data, task, full, expected):
    study.seeds("lora", seeds=8, data=data, **{task: 0.5})
    assert study.judgement(name).why == "No finished full and lora"
    study.seeds("full", seeds=8, data=data, **{task: full})
    assert study.judgement(name).decision == expected
    (other,) = {"lora-numerical", "lora-niche"} - {name}
    assert study.judgement(other).effect is None


@pytest.mark.parametrize(
    ("data", "numerical"),
    [("chain_sum max_digits=2 max_terms=2", True), ("gsm8k", True), ("facts", False), ("chain_summary", False)],
)
def test_numerical_data_sets_are_known_by_name(data, numerical):
    assert trained_on(Evidence([make_record(data=data)], None), NUMERICAL) == numerical
