"""Situations of `make validity` for claims that are judged as their article says them: alpha, convergence, rates."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special
from simulated import Noise, Study, shift
from situations import Outcome, situation
from verdict_situations import GAIN, NOT_SMALL, both, verdict

from harness.plugins.articles.claims import REFUTED, SUPPORTED, TOO_SMALL, Decision
from harness.record import Record, ValidationPoint


def answered(study: Study, made: Record, value: float, noise: Noise, item: np.ndarray, place: np.ndarray) -> None:
    """Give `made` a score of its data's task, of items whose difficulties are `item`."""
    draw = study.draw
    odds = shift(value, noise.spread) + item + draw.normal(0, noise.rest, len(item)) + draw.normal(0, noise.seed)
    odds = odds + draw.normal(0, noise.own, noise.clusters)[place]
    study.score(made, "wordmath", (draw.random(len(item)) < special.expit(odds)).astype(float), place)


@situation("alpha-r, 5 rates", **both(GAIN, **{"3 seeds": {"seeds": 3}, "8 seeds": {"seeds": 8}}))
def alpha_r(draw: np.random.Generator, gain: float, wrong: Any, seeds: int) -> Outcome:
    """What alpha scales a rate scales too: losses and scores depend on alpha × rate, but for `gain`.

    Twice the best rate loses 1.2 points. The grid of rates lies anywhere around the best one.
    """
    study, noise = Study(draw), Noise(seed_points=1, clusters=50, size=20)
    place = np.repeat(np.arange(noise.clusters), noise.size)
    item = draw.normal(0, noise.shared, noise.clusters)[place] + draw.normal(0, noise.item, len(place))
    grid = 2e-4 * 2.0 ** (np.arange(-2, 3) + draw.random() - 0.5)
    for alpha in (16.0, 32.0):
        for lr in grid:
            off = np.log(lr * alpha / (2e-4 * 16 * 2**0.5)) ** 2
            for seed in range(seeds):
                loss = 1 + 0.05 * off + draw.normal(0, 0.01)
                made = study.add("lora", seed, lr=float(lr), loss=float(loss), alpha=alpha)
                answered(study, made, 0.5 - 0.025 * off + (gain if alpha == 32 else 0.0), noise, item, place)
    return verdict(study, "alpha-r", wrong)


MOVED = {
    "as far": {"scaled": 2.0, "kept": 2.0, "wrong": NOT_SMALL},
    "1.45 times less": {"scaled": 2.0, "kept": 2.9, "wrong": NOT_SMALL},
    "1.55 times less": {"scaled": 2.0, "kept": 3.1, "wrong": (TOO_SMALL, REFUTED)},
    "1.55 times more": {"scaled": 3.1, "kept": 2.0, "wrong": (TOO_SMALL, SUPPORTED)},
    "not at all, and 4 times": {"scaled": 1.0, "kept": 4.0, "wrong": (TOO_SMALL, REFUTED)},
}


@situation("alpha-rank, 8 rates × 2 seeds", **MOVED)
def alpha_rank(draw: np.random.Generator, scaled: float, kept: float, wrong: Any) -> Outcome:
    study = Study(draw)
    for rank, alpha, best in ((4, 8.0, 3e-4), (64, 128.0, 3e-4 * scaled), (64, 8.0, 3e-4 * kept)):
        for lr in 3e-4 * 2.5 ** (np.arange(-3, 5) + draw.random() - 0.5):
            for seed in range(2):
                loss = 1 + 0.1 * np.log(lr / best) ** 2 + draw.normal(0, 0.01)
                study.add("lora", seed, lr=float(lr), rank=rank, alpha=alpha, loss=float(loss))
    return verdict(study, "alpha-rank", wrong)


HIGHER = {
    "as high": {"ratio": 1.0, "wrong": NOT_SMALL},
    "2.9 times": {"ratio": 2.9, "wrong": NOT_SMALL},
    "3.1 times": {"ratio": 3.1, "wrong": (TOO_SMALL, REFUTED)},
    "10 times": {"ratio": 10.0, "wrong": (TOO_SMALL, REFUTED)},
}


@situation("lr-ratio of adapters", **HIGHER)
def lr_ratio(draw: np.random.Generator, ratio: float, wrong: Any) -> Outcome:
    """ratio: of the best rate of each adapter to that of full fine-tuning."""
    study = Study(draw)
    for method in ("full", "lora", "qlora", "dora"):
        best = 4e-5 if method == "full" else 4e-5 * ratio
        for lr in best * 2.5 ** (np.arange(-3, 4) + draw.random() - 0.5):
            for seed in range(2):
                loss = 1 + 0.1 * np.log(lr / best) ** 2 + draw.normal(0, 0.02)
                study.add(method, seed, lr=float(lr), loss=float(loss))
    return verdict(study, "lr-ratio", wrong)


PACE = {
    "as fast": {"times": 1.0, "wrong": REFUTED},
    "1.24 times the tokens": {"times": 1.24, "wrong": REFUTED},
    "1.26 times the tokens": {"times": 1.26, "wrong": SUPPORTED},
    "1/1.26 of the tokens": {"times": 1 / 1.26, "wrong": SUPPORTED},
}


@situation("dora-convergence", **both(PACE, **{"3 seeds": {"seeds": 3}, "5 seeds": {"seeds": 5}}))
def dora_convergence(draw: np.random.Generator, times: float, wrong: Decision, seeds: int) -> Outcome:
    """Losses fall to 1 by half every so many tokens; seeds and validations differ."""
    study = Study(draw)
    for method, half in (("full", 3000.0), ("dora", 3000.0 * times)):
        for seed in range(seeds):
            pace = half * np.exp(draw.normal(0, 0.05))
            made = study.add(method, seed)
            made.validation = [
                ValidationPoint(step, 1000 * step, float(1 + 2.0 ** (-1000 * step / pace) + draw.normal(0, 0.002)))
                for step in range(1, 11)
            ]
    return verdict(study, "dora-convergence", wrong)
