"""DoRA: merged it serves as LoRA by construction, and how fast it converges."""

from __future__ import annotations

from dataclasses import replace

import pytest
from judged_study import JudgedStudy
from records import MIB, measured

from harness.plugins.articles.beyond_lora import ARTICLE
from harness.plugins.articles.claims import OPEN, REFUTED, SUPPORTED
from harness.record import Disk, ValidationPoint


@pytest.fixture
def study(tmp_path):
    return JudgedStudy(tmp_path, ARTICLE.claims)


# Serving


def served(study, slowdown=1.0, size=257, seeds=3):
    for seed in range(seeds):
        measured(study.add("lora", seed=seed), 1 + seed / 200)
        dora = measured(study.add("dora", seed=seed), slowdown * (1 + seed / 200))
        dora.disk = Disk(18 * MIB, size * MIB)


@pytest.mark.parametrize("seeds", [1, 3])
def test_merged_weights_of_one_size_serve_alike_by_construction(study, seeds):
    served(study, 1.02, seeds=seeds)
    found = study.judgement("dora-serving")
    assert found.decision == SUPPORTED
    assert found.effect == (1, 1, 1)
    assert found.why.startswith("Merged, both have the same matrices of the base; measured ratio of rates: 0.98")
    assert found.why.endswith(")") == (seeds > 1)


def test_without_measured_rates_the_size_alone_decides(study):
    served(study)
    for record in study.records:
        record.inference = {}
    found = study.judgement("dora-serving")
    assert (found.decision, found.effect) == (SUPPORTED, (1, 1, 1))


def test_rates_that_differ_all_the_same_leave_the_identity_open(study):
    served(study, 1.5)
    found = study.judgement("dora-serving")
    assert found.decision == OPEN
    assert "the measured rates differ" in found.why


def test_merged_weights_of_another_size_refute_it(study):
    served(study, size=300)
    found = study.judgement("dora-serving")
    assert (found.decision, found.why) == (REFUTED, "Merged weights differ in size")
    assert found.effect.value == pytest.approx(300 / 257)


@pytest.mark.parametrize(("slowdown", "expected"), [(1.01, SUPPORTED), (1.5, REFUTED)])
def test_where_no_size_is_recorded_the_rates_decide(study, slowdown, expected):
    served(study, slowdown)
    for record in study.records:
        record.disk = None
    assert study.judgement("dora-serving").decision == expected


# Convergence


def converging(study, **halves):
    """Losses of 1 + 2^(-tokens / half), validated every 1,000 tokens; seeds differ by 1%."""
    for method, half in halves.items():
        for seed in range(4):
            record = study.add(method, seed=seed)
            own = half * (1 + seed / 100)
            tokens = range(1000, 11_000, 1000)
            record.validation = [ValidationPoint(i, t, 1 + 2 ** (-t / own)) for i, t in enumerate(tokens)]


@pytest.mark.parametrize(
    ("dora", "expected", "effect"), [(2000, SUPPORTED, 1), (4000, REFUTED, 2), (1000, REFUTED, 0.5), (2500, OPEN, 1.25)]
)
def test_dora_converges_as_fast_as_full(study, dora, expected, effect):
    converging(study, full=2000, dora=dora)
    found = study.judgement("dora-convergence")
    assert (found.decision, found.seeds) == (expected, 4)
    assert found.effect.value == pytest.approx(effect, rel=0.05)


def test_convergence_wants_validations_during_training(study):
    converging(study, full=2000, dora=2000)
    for record in study.records[:1]:
        record.validation = record.validation[-1:]
    assert study.judgement("dora-convergence").why == "No validations during training (train.validate_every)"


def test_a_loss_that_is_reached_at_once_tells_nothing(study):
    converging(study, full=200, dora=20_000)
    found = study.judgement("dora-convergence")
    assert (found.decision, found.why) == (OPEN, "A run reached the common loss before its first validation")
    study.records = [replace(record) for record in study.records if record.cell.seed == 0]
    assert study.judgement("dora-convergence").why == "One seed"
