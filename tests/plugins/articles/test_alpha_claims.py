"""alpha = 2r: its score at a common learning rate, and how far the best rate moves with rank."""

from __future__ import annotations

import numpy as np
import pytest
from judged_study import JudgedStudy

from harness.plugins.articles.beyond_lora import ARTICLE
from harness.plugins.articles.claims import OPEN, REFUTED, SUPPORTED, TOO_SMALL

GRID = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)


@pytest.fixture
def study(tmp_path):
    return JudgedStudy(tmp_path, ARTICLE.claims)


def losses(study, alpha, best, score, rates=GRID, seeds=3, rank=16):
    """Losses that are least at `best`; scores are `score` at 2e-4, and another at each other rate."""
    for lr in rates:
        for seed in range(seeds):
            loss = 1 + 0.1 * abs(np.log(lr / best))
            study.add("lora", rank, seed, alpha=alpha, lr=lr, loss=loss, gsm8k=score if lr == 2e-4 else 0.9)


@pytest.mark.parametrize(("name", "alpha"), [("alpha-r", 16), ("alpha-4r", 64)])
@pytest.mark.parametrize(
    ("score", "seeds", "expected"), [(0.4, 3, SUPPORTED), (0.6, 3, REFUTED), (0.5, 8, TOO_SMALL), (0.4, 1, OPEN)]
)
def test_alphas_are_compared_at_the_rate_that_is_best_for_both(study, name, alpha, score, seeds, expected):
    losses(study, 32, 2e-4, 0.5, seeds=seeds)
    losses(study, alpha, 2e-4, score, seeds=seeds)
    found = study.judgement(name)
    assert (found.decision, found.seeds) == (expected, seeds)
    assert all("lr0.0002" in record for record in found.records)
    other = "alpha-r" if name == "alpha-4r" else "alpha-4r"
    assert study.judgement(other).effect is None


def test_an_alpha_that_makes_up_for_a_rate_is_no_better(study):
    """What alpha scales a rate scales too: alpha = r is best at 4e-4 and 2r at 1e-4, and both alike between them."""
    losses(study, 32, 1e-4, 0.5)
    losses(study, 16, 4e-4, 0.5)
    assert study.judgement("alpha-r").decision == TOO_SMALL


def test_a_common_rate_at_an_end_favours_one_alpha(study):
    losses(study, 32, 2e-4, 0.5, rates=GRID[2:])
    losses(study, 16, 2e-4, 0.4, rates=GRID[2:])
    found = study.judgement("alpha-r")
    assert (found.decision, found.effect) == (OPEN, None)
    assert found.why.startswith("The rate that is best for both alphas is at an end")


def test_fresh_seeds_of_the_chosen_alpha_take_no_part(study):
    losses(study, 32, 2e-4, 0.5)
    losses(study, 16, 2e-4, 0.4)
    for seed in (3, 4):
        study.add("lora", 16, seed, alpha=32, lr=2e-4, gsm8k=0.1).confirmation = True
    found = study.judgement("alpha-r")
    assert (found.decision, found.seeds, len(found.records)) == (SUPPORTED, 3, 6)


def test_rates_that_one_alpha_alone_tried_compare_nothing(study):
    losses(study, 32, 2e-4, 0.5)
    losses(study, 16, 3e-4, 0.4, rates=(6e-5, 3e-4, 1.2e-3))
    assert study.judgement("alpha-r").why == (
        "No finished adapters with alpha = 2r and alpha = r at the same learning rates"
    )


def moves(study, scaled, kept, rates=(2e-5, 5e-5, 1.25e-4, 3.1e-4, 7.8e-4, 1.95e-3, 4.9e-3)):
    """The best rate is in the middle at rank 4, and from there by `scaled` (2r) and `kept` (one alpha) at rank 64."""
    middle = rates[3]
    for rank, alpha, best in ((4, 8, middle), (64, 128, middle * scaled), (64, 8, middle * kept)):
        for lr in rates:
            for seed in range(2):
                study.add("lora", rank, seed, alpha=alpha, lr=lr, loss=1 + 0.1 * np.log(lr / best) ** 2)


@pytest.mark.parametrize(
    ("scaled", "kept", "expected", "effect"),
    [
        (1.0, 4.0, SUPPORTED, 4),
        (4.0, 1.0, REFUTED, 1 / 4),
        (2.0, 2.0, OPEN, 1),  # four best rates of a grid whose steps are 2.5 are too unsure for less than 1.5 times
    ],
)
def test_how_far_the_best_rate_moves_with_rank(study, scaled, kept, expected, effect):
    moves(study, scaled, kept)
    found = study.judgement("alpha-rank")
    assert found.effect.value == pytest.approx(effect, rel=0.1)
    assert found.decision == expected
    assert len(found.records) == 3 * 7 * 2


def test_without_both_kinds_of_alpha_no_move_is_known(study):
    moves(study, 1.0, 4.0)
    study.records = [record for record in study.records if (record.cell.rank, record.cell.alpha) != (64, 8)]
    assert study.judgement("alpha-rank").why == "No finished lora at r=4 and r=64 with one alpha"
    study.records = [record for record in study.records if record.cell.rank == 4]
    assert study.judgement("alpha-rank").why == "No finished lora with alpha = 2r at ranks that span 8×"


def test_sweep_alpha_tries_the_same_rates_for_every_alpha(compose):
    params = compose("hydra/sweeper=grid", config="alpha", return_hydra_config=True).hydra.sweeper.params
    assert {"alpha", "lr_scale"} <= set(params)
    assert len(params["lr_scale"].split(",")) >= 5


def test_between_two_rates_the_scores_are_interpolated(study):
    """Best for both is 2.83e-4, halfway from 2e-4 to 4e-4: 2r gains 10 points at the one and loses 10 at the other."""
    for alpha in (16, 32):
        for lr in GRID:
            for seed in range(8):
                gain = {2e-4: 0.1, 4e-4: -0.1}.get(lr, 0.3) if alpha == 32 else 0
                loss = 1 + 0.1 * np.log(lr / (2e-4 * 2**0.5)) ** 2
                study.add("lora", 16, seed, alpha=alpha, lr=lr, loss=loss, gsm8k=0.5 + gain)
    found = study.judgement("alpha-r")
    assert found.effect.value == pytest.approx(0, abs=0.005)
    assert {record.split("-lr")[1][:6] for record in found.records} == {"0.0002", "0.0004"}
