"""The rules of “LoRA Without Regret” on synthetic records: supported, refuted, not decided."""

from __future__ import annotations

import shlex
from dataclasses import replace

import numpy as np
import pytest
from judged_study import JudgedStudy

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, TOO_SMALL
from harness.plugins.articles.lora_without_regret import ARTICLE
from harness.plugins.articles.rules import ATTENTION
from harness.plugins.articles.verdict_tables import claim_lines
from harness.record import LossPoint
from harness.report.tables.formats import render
from harness.sweep.app.grid import grid

ALL = "all-linear"


@pytest.fixture
def study(tmp_path):
    return JudgedStudy(tmp_path, ARTICLE.claims)


def add(
    study, method, loss, seeds=3, *, rank=None, targets=ALL, layers=None, size=8, lr=None, trainable=None, bits=None
):
    """Records of `seeds` seeds whose losses differ by 0.1%. bits: in the training data; None: unknown."""
    for seed in range(seeds):
        adapt = {"r": rank, "target_modules": targets, "layers_to_transform": layers} if method != "full" else None
        settings = {"method": {"name": method, "adapt": adapt}, "train": {"batch_size": size, "max_steps": 50}}
        record = study.add(method, rank, seed, loss=loss * (1 + seed / 1000), settings=settings, lr=lr, alpha=32)
        if trainable:
            record.parameters = replace(record.parameters, trainable=trainable)
        if bits:
            nats_per_token = bits * np.log(2) / record.train.tokens.supervised
            record.train.loss = [LossPoint(1, 400, float(nats_per_token), 2e-4, None)]


# Capacity


@pytest.mark.parametrize(
    ("small", "large", "seeds", "decision", "why"),
    [
        (1.2, 0.9, 3, SUPPORTED, ""),
        (1.0, 1.0, 3, TOO_SMALL, "Too small of the smallest adapter"),
        (0.9, 1.0, 3, REFUTED, "Refuted by the smallest adapter"),
        (1.2, 1.1, 3, REFUTED, "Refuted by the largest adapter"),
        (1.2, 1.0, 1, OPEN, "One seed"),
    ],
)
def test_rank_capacity(study, small, large, seeds, decision, why):
    add(study, "full", 1.0, seeds)
    add(study, "lora", small, seeds, rank=1, trainable=1_000, bits=1e6)
    add(study, "lora", large, seeds, rank=64, trainable=10_000_000, bits=1e6)
    judgement = study.judgement("rank-capacity")
    assert (judgement.decision, judgement.why, judgement.seeds) == (decision, why, seeds)
    shown = large if decision == OPEN or why.endswith("the largest adapter") else small  # closest to contradicting
    if decision == SUPPORTED:
        shown = min((small, large), key=lambda ratio: abs(np.log(ratio / 1.01)))
    assert judgement.effect.value == pytest.approx(shown)
    assert len(judgement.records) == 3 * seeds


@pytest.mark.parametrize(
    ("bits", "why"),
    [
        (1e3, "The training data fit into the smallest adapter"),
        (1e9, "The training data exceed the largest adapter"),
        (None, "The information in the training data is unknown: no training losses"),
    ],
)
def test_capacity_is_not_judged_unless_one_adapter_exceeds_it_and_another_does_not(study, bits, why):
    add(study, "full", 1.0)
    add(study, "lora", 1.2, rank=1, trainable=1_000, bits=bits)
    add(study, "lora", 1.0, rank=64, trainable=10_000_000, bits=bits)
    judgement = study.judgement("rank-capacity")
    assert (judgement.decision, judgement.why) == (OPEN, why)


def test_a_parameter_stores_two_bits(study):
    add(study, "full", 1.0)
    add(study, "lora", 1.2, rank=1, trainable=1_000, bits=2_001)
    add(study, "lora", 1.0, rank=64, trainable=1_001, bits=2_001)
    assert study.judgement("rank-capacity").decision == SUPPORTED


def test_each_adapter_is_compared_at_its_best_learning_rate(study):
    add(study, "full", 1.0)
    add(study, "lora", 1.5, rank=1, trainable=1_000, bits=1e6, lr=1e-4)
    add(study, "lora", 1.2, rank=1, trainable=1_000, bits=1e6, lr=1e-3)
    add(study, "lora", 0.5, rank=64, trainable=10_000_000, bits=1e6)
    assert study.judgement("rank-capacity").effect.value == pytest.approx(1.2)


def test_adapters_of_other_methods_are_not_lora_of_another_capacity(study):
    add(study, "full", 1.0)
    add(study, "lora", 1.2, rank=1, trainable=1_000, bits=1e6)
    add(study, "dora", 1.0, rank=1, trainable=10_000_000, bits=1e6)
    assert study.judgement("rank-capacity").effect is None


def test_adapters_of_one_rank_on_different_layers_are_two(study):
    add(study, "full", 1.0)
    add(study, "lora", 1.2, rank=1, layers=[9], trainable=100, bits=1e4)
    add(study, "lora", 1.0, rank=1, layers=[9, 19], trainable=10_000_000, bits=1e4)
    assert study.judgement("rank-capacity").decision == SUPPORTED


# Learning rates


def rates(study, method, best, rank=None, seeds=2, grid=(0.16, 0.4, 1, 2.5, 6.25), size=8):
    for factor in grid:
        add(study, method, 1 + 0.5 * abs(np.log(factor)), seeds, rank=rank, lr=best * factor, size=size)


@pytest.mark.parametrize(("times", "decision"), [(10, SUPPORTED), (1, REFUTED), (28, OPEN)])
def test_lr_ratio(study, times, decision):
    rates(study, "full", 2e-5)
    rates(study, "lora", times * 2e-5, rank=16)
    judgement = study.judgement("lr-ratio")
    assert judgement.decision == decision
    half = 2.5 ** (0.25 * 2**0.5)  # a quarter of a step of the grid, twice
    assert judgement.effect == pytest.approx((times, times / half, times * half), rel=1e-2)


def test_lr_ratio_needs_both_methods(study):
    rates(study, "lora", 2e-4, rank=16)
    assert study.judgement("lr-ratio").why == "No finished full"


def test_a_ratio_of_rates_of_one_seed_is_less_sure(study):
    for method in ("full", "lora"):
        rates(study, method, 2e-5 if method == "full" else 4e-4, rank=16 if method == "lora" else None, seeds=1)
    judgement = study.judgement("lr-ratio")
    assert (judgement.decision, judgement.seeds) == (OPEN, 1)
    for method in ("full", "lora"):
        rates(study, method, 2e-5 if method == "full" else 4e-4, rank=16 if method == "lora" else None)
    assert study.judgement("lr-ratio").decision == SUPPORTED


@pytest.mark.parametrize(("change", "decision"), [(1, SUPPORTED), (15, REFUTED), (2.8, OPEN)])
def test_lr_rank(study, change, decision):
    rates(study, "lora", 2e-4, rank=4)
    rates(study, "lora", 2e-4 * change, rank=64)
    judgement = study.judgement("lr-rank")
    assert judgement.decision == decision
    assert judgement.effect.value == pytest.approx(change)


def test_lr_rank_needs_ranks_that_are_far_apart_and_one_alpha(study):
    rates(study, "lora", 2e-4, rank=16)
    rates(study, "lora", 2e-4, rank=64)
    assert study.judgement("lr-rank").why == "No finished lora at ranks that span 8×"
    rates(study, "lora", 2e-4, rank=4)
    for record in study.records:
        record.cell.alpha = 2.0 * record.cell.rank
    assert study.judgement("lr-rank").why == "alpha differs between ranks (8 and 128)"


# Layers


@pytest.mark.parametrize(
    ("name", "rank", "trainable"), [("layers-rank", 16, 1_000_000), ("layers-parameters", 42, 2_600_000)]
)
@pytest.mark.parametrize(
    ("loss", "seeds", "decision"), [(1.1, 3, SUPPORTED), (1.0, 3, TOO_SMALL), (0.9, 3, REFUTED), (1.1, 1, OPEN)]
)
def test_layers(study, name, rank, trainable, loss, seeds, decision):
    add(study, "lora", 1.0, seeds, rank=16, trainable=2_650_000)
    assert study.judgement(name).effect is None
    add(study, "lora", loss, seeds, rank=rank, targets=sorted(ATTENTION), trainable=trainable)
    judgement = study.judgement(name)
    assert (judgement.decision, judgement.seeds) == (decision, seeds)
    assert judgement.effect.value == pytest.approx(loss)
    other = {"layers-rank": "layers-parameters", "layers-parameters": "layers-rank"}[name]
    assert study.judgement(other).effect is None


def test_adapters_on_a_part_of_attention_are_not_attention_alone(study):
    add(study, "lora", 1.0, rank=16, trainable=2_650_000)
    add(study, "lora", 1.1, rank=16, targets=["q_proj", "v_proj"], trainable=1_000_000)
    assert study.judgement("layers-rank").effect is None


# Batch size


@pytest.mark.parametrize(
    ("large", "seeds", "decision"), [(1.2, 3, SUPPORTED), (1.05, 3, TOO_SMALL), (1.0, 3, REFUTED), (1.2, 1, OPEN)]
)
def test_batch_penalty(study, large, seeds, decision):
    for size, lora in ((4, 1.05), (64, large)):
        add(study, "full", 1.0, seeds, size=size)
        add(study, "lora", lora, seeds, rank=16, size=size)
    judgement = study.judgement("batch-penalty")
    assert (judgement.decision, judgement.seeds) == (decision, seeds)
    assert judgement.effect.value == pytest.approx(large / 1.05)
    assert len(judgement.records) == 4 * seeds


def test_batch_penalty_needs_two_sizes_of_both_methods(study):
    add(study, "full", 1.0, size=4)
    for size in (4, 64):
        add(study, "lora", 1.0, rank=16, size=size)
    assert study.judgement("batch-penalty").why == "No finished lora and full with two batch sizes"


@pytest.mark.parametrize(("large", "decision"), [(2e-4, SUPPORTED), (2e-3, DEPENDS)])
def test_a_best_learning_rate_is_that_of_its_batch_size(study, large, decision):
    for size, lora in ((4, 2e-4), (64, large)):
        rates(study, "full", 2e-5, size=size)
        rates(study, "lora", lora, rank=16, size=size)
    judgement = study.judgement("lr-ratio")
    assert judgement.decision == decision
    assert judgement.effect.value == pytest.approx(large / 2e-5)
    assert judgement.why == ("supported at batch size 4; refuted at batch size 64" if decision == DEPENDS else "")


def test_rates_that_were_not_tried_at_a_batch_size_are_no_evidence(study):
    rates(study, "full", 2e-5)
    rates(study, "lora", 2e-4, rank=16)
    add(study, "lora", 0.1, 2, rank=16, size=64)
    add(study, "full", 0.1, 2, size=64)
    assert study.judgement("lr-ratio").decision == SUPPORTED
    rates(study, "full", 2e-5, grid=(0.4, 1), size=128)  # here its best rate is at an end
    rates(study, "lora", 2e-4, rank=16, size=128)
    judgement = study.judgement("lr-ratio")
    assert (judgement.decision, judgement.why) == (OPEN, "supported at batch size 8; not decided at batch size 128")
    assert judgement.effect.value == pytest.approx(10)


# As a whole


@pytest.mark.parametrize("run", sorted({claim.run for claim in ARTICLE.claims.values()}))
def test_the_sweep_that_decides_a_claim_has_the_axes_of_its_rule(compose, cell, run):
    _, name = shlex.split(run)
    sweeper = compose("hydra/sweeper=grid", config=name, return_hydra_config=True).hydra.sweeper
    points = grid(sweeper.params, sweeper.candidates, [])
    first, last = cell(*points[0], config=name), cell(*points[-1], config=name)
    assert {first.method, last.method} <= {"full", "lora"}
    assert last.alpha == 32
    assert len({seed for point in points for seed in point if seed.startswith("seed=")}) > 1


def test_records_without_anything_decide_nothing():
    assert ARTICLE.verdicts([], None) == []


def test_the_command_judges_the_committed_quickstart(capsys):
    arguments = ["--study", "reference/quickstart", "--results-dir", str(ROOT / "results")]
    assert main(["claims", "--article", "lora_without_regret", *arguments]) == 0
    out = capsys.readouterr().out
    assert "claims of “LoRA Without Regret”: 0 supported, 0 refuted, 0 not decided" in out
    assert f"Not judged: {len(ARTICLE.claims)} claims need cells that are not there" in out
    assert main(["table", "--article", "lora_without_regret", *arguments]) == 2
    assert "lora_without_regret has no table" in capsys.readouterr().err


def test_a_table_of_verdicts_renders_with_losses_as_ratios(study):
    add(study, "lora", 1.0, rank=16, trainable=2_650_000)
    add(study, "lora", 1.1, rank=16, targets=sorted(ATTENTION), trainable=1_000_000)
    study.records[-1].validation[-1].loss = 1.12  # of seed 2, else 1.1022: the ratio is 1.1, 1.1 and 1.118
    text = render(claim_lines(ARTICLE, ARTICLE.merged([(study.records, study.folder)])), "md")
    assert "| layers-rank | supported | 1.11× (1.08× to 1.13×) |" in text
