"""Effects of claims that stand in sentences of docs/ are those of the records."""

from __future__ import annotations

import functools

import pytest

import harness
from harness.config import ROOT


@functools.cache
def page(name: str) -> str:
    return " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())


def effect(claim: str, study: str) -> tuple[float, float, float]:
    """The effect of a claim of “Beyond LoRA” in the one place that a study has, with its interval."""
    claims = harness.read(ROOT / "results" / "reference" / study).claims("beyond_lora", long=True)
    (row,) = claims[claims["claim"] == claim].itertuples()
    return row.effect, row.low, row.high


def test_dora_beside_full_fine_tuning_on_half_a_billion_weights():
    _, low, high = effect("dora-full", "gsm8k_0_5b")
    assert f"it scores {100 * low:.1f} to {100 * high:.1f} points more" in page("studies")


def test_the_rates_of_adapters_beside_that_of_full_fine_tuning():
    ratios = [effect("lr-ratio", study)[0] for study in ("study_facts", "study_lr")]
    assert f"adapters take a rate {min(ratios):.0f} to {max(ratios):.0f} times" in page("verdicts")


def test_what_full_fine_tuning_learns_more_of_new_facts():
    _, low, high = effect("lora-niche", "study_facts")
    assert f"full fine-tuning learned {100 * low:.0f} to {100 * high:.0f} points more of new facts" in page("verdicts")


@pytest.mark.parametrize("name", ["verdicts", "study-design"])
def test_the_time_of_a_step_of_dora(name):
    ratio, low, high = effect("dora-training", "study_speed")
    said = {
        "verdicts": "a step of DoRA takes {:.2f} times as long as one of LoRA ({:.2f} to {:.2f} times)",
        "study-design": "({:.2f} times, {:.2f} to {:.2f})",
    }
    assert said[name].format(ratio, low, high) in page(name)


def test_how_far_the_best_rate_moves_with_alpha():
    ratio, low, high = effect("alpha-rank", "study_alpha_rank")
    assert f"exploratory: {ratio:.2f} times ({low:.2f} to {high:.2f})" in page("study-design")
