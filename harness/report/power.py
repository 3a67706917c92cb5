"""How many items and seeds it takes to tell two methods apart, before anything is run.

Simulates what `statistics.differences` would see, and tests it as that does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import special
from tabulate import tabulate

from harness import units
from harness.errors import UserError
from harness.record import Record
from harness.report import statistics
from harness.report.frame import score_name
from harness.report.pairwise import MANY, items, ordered_scores
from harness.report.statistics import ALPHA, Answers
from harness.report.tables.rows import group
from harness.score_names import score_label

WANTED = 0.8
SEEDS, METHODS = (1, 2, 3, 5, 10), (2, 6)
MOST_ITEMS, MOST_SEEDS = 10**6, 100
SPARE = 1.25  # times the fewest seeds that would do: with those alone a difference takes up to MOST_ITEMS
STUDIES = 20_000


@dataclass(frozen=True)
class Assumptions:
    """The components of the noise in accuracies.

    accuracy: of both methods, a proportion; an item's variance is accuracy × (1 - accuracy).
    seed_sd: standard deviation of a method's true accuracy from seed to seed, beyond what changes group by group.
    between_seeds: correlation, over items, of two seeds of one method; between_methods: of two methods.
    design: items that tell as much as one independent item; above 1 if groups of items are alike (design effect).
    """

    accuracy: float = 0.5
    seed_sd: float = 0.01
    between_seeds: float = 0.6
    between_methods: float = 0.5
    design: float = 1.0


def power(effect: float, seeds: int, n: int, methods: int = 2, noise_model: Assumptions | None = None) -> float:
    """The proportion of differences that are found, of one of `methods` that is better than all others by `effect`.

    In studies with `seeds` seeds and `n` items, tested as tables do: each method against the best one, by
    `statistics.stepwise`. All methods tell how seeds vary (`statistics.moderated`). With one seed only the trained
    models are compared, without seed-to-seed variance.
    """
    noise_model, draw, studies = noise_model or Assumptions(), np.random.default_rng(0), 2 * STUDIES // methods
    n = max(2, round(n / noise_model.design))  # that are independent
    variance = noise_model.accuracy * (1 - noise_model.accuracy)
    rest = variance * (1 - noise_model.between_seeds) / n / seeds
    over_items = 2 * (variance * (noise_model.between_seeds - noise_model.between_methods) / n + rest)
    if seeds == 1:
        over_items = 2 * variance * (1 - noise_model.between_methods) / n
        return _mcnemar_power(
            effect, n, _one_seed_alpha(effect / max(over_items, 1e-300) ** 0.5, methods), noise_model, draw
        )
    over_seeds = 2 * noise_model.seed_sd**2 / seeds
    scores = ((over_items + over_seeds) / 2) ** 0.5 * draw.standard_normal((methods, studies))
    gaps = effect + scores[0] - scores[1:]
    own, degrees = _own_spreads(draw, methods, seeds, studies)
    shrunk, freedoms = statistics.moderated((noise_model.seed_sd**2 / seeds + rest) * own, degrees)
    noise = statistics.Level(shrunk[0] + shrunk[1:], 2 * rest, np.minimum(freedoms[0], freedoms[1:]))
    total, freedom = statistics.combined_known(noise, over_items, n - 1)
    error = total**0.5
    p = 2 * special.stdtr(freedom, -gaps / np.where(error > 0, error, 1e-300))
    return _share_found(p, freedom, np.all(gaps > 0, axis=0))


def _own_spreads(draw: np.random.Generator, methods: int, seeds: int, studies: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of each method's variance over seeds, of which the true one is 1, (methods, studies), with their
    degrees of freedom: of paired seeds, as tables have them (`statistics.seed_effects`)."""
    if (methods - 1) * (seeds - 1) <= 1:
        freedom = np.full(methods, seeds - 1.0)
        return draw.chisquare(freedom[0], (methods, studies)) / freedom[0], freedom
    contrasts = draw.standard_normal((methods, seeds - 1, studies))
    squares = ((contrasts - contrasts.mean(axis=0)) ** 2).sum(axis=1)
    residual = np.eye(methods) - 1 / methods
    freedom = (seeds - 1) * np.diag(residual)
    return statistics.own_variances(squares, freedom, (seeds - 1) * residual**2), freedom


def _share_found(p: np.ndarray, freedom: np.ndarray, best: np.ndarray) -> float:
    """Of differences, (others, studies), the share that `statistics.stepwise` tells.

    p, freedom: of the first method against each other one. best: the studies in which it is the best one.
    """
    others = len(p)
    order = np.argsort(p, axis=0)
    p, freedom = np.take_along_axis(p, order, axis=0), np.take_along_axis(freedom, order, axis=0)
    detected = np.ones(p.shape[1], dtype=bool) & best
    sure = best & np.all(p < ALPHA / statistics.step_charge(2, others + 1, others < MANY), axis=0)
    share = 0.0
    for step in range(others):
        detected = detected & (p[step] < _alpha(freedom[step], others + 1 - step, others + 1))
        share += float(np.mean(detected | sure)) / others
    return share


FREEDOMS = np.geomspace(1, 1000, 15)


def _alpha(freedom: np.ndarray, left: int, methods: int) -> np.ndarray:
    """The two-sided p-value at which a difference is found, of as many methods that are left."""
    return np.interp(np.log(freedom), np.log(FREEDOMS), _alphas(left, methods))


@functools.cache
def _alphas(left: int, methods: int) -> np.ndarray:
    """`_alpha` of FREEDOMS."""
    alpha = ALPHA / statistics.step_charge(left, methods, methods <= MANY)
    return np.array([2 * special.stdtr(f, -statistics.range_quantile(alpha, f, left)) for f in FREEDOMS])


def _one_seed_alpha(distance: float, methods: int) -> float:
    """The level at which one pair is told as often as `statistics.stepwise` tells it among `methods`.

    distance: of the best method and each other one, in standard errors. As of scores with normal, known errors.
    """
    if methods == 2:
        return ALPHA
    scores = np.random.default_rng(1).normal(0, 0.5**0.5, (methods, 2 * STUDIES // methods))
    gaps = distance + scores[0] - scores[1:]
    detected = _share_found(2 * special.ndtr(-gaps), np.full(gaps.shape, FREEDOMS[-1]), np.all(gaps > 0, axis=0))
    alpha = 2 * special.ndtr(special.ndtri(min(max(detected, 1e-6), 1 - 1e-6)) - distance)
    return float(np.clip(alpha, ALPHA / math.comb(methods, 2), ALPHA))


def _mcnemar_power(effect: float, n: int, alpha: float, noise_model: Assumptions, draw: np.random.Generator) -> float:
    """`power` of one seed each: the proportion of studies in which McNemar's exact test detects the difference.

    The two accuracies lie half of `effect` below and above the assumed one, within 0 and 1.
    Answers to an item are right together as often as the correlation between methods implies.
    """
    low = min(max(0.0, noise_model.accuracy - effect / 2), 1 - effect)
    high = low + effect
    together = low * high + noise_model.between_methods * (low * (1 - low) * high * (1 - high)) ** 0.5
    together = min(max(together, low + high - 1), low)
    losses, wins = low - together, high - together
    discordant = draw.binomial(n, min(1.0, wins + losses), STUDIES)
    won = draw.binomial(discordant, wins / (wins + losses))
    p = np.minimum(1.0, 2 * special.bdtr(np.minimum(won, discordant - won), discordant, 0.5))
    return float(np.mean(p < alpha))


def items_needed(effect: float, seeds: int, methods: int = 2, noise_model: Assumptions | None = None) -> int | None:
    """The fewest items with which `power` reaches 80%; None if a million are not enough."""
    if power(effect, seeds, MOST_ITEMS, methods, noise_model) < WANTED:
        return None
    low, high = 2, MOST_ITEMS
    while high - low > max(1, 0.005 * low):
        middle = max(low + 1, int((low * high) ** 0.5))
        low, high = (low, middle) if power(effect, seeds, middle, methods, noise_model) >= WANTED else (middle, high)
    return high


def assumptions(records: Sequence[Record], folder: Path) -> tuple[Assumptions, list[str]]:
    """The noise in a study's score of right and wrong items, and notes on what is assumed.

    Of several scores: in the first one, in the order of tables.
    """
    rows = group(records)
    groups = [[rows.records[i] for i in choice.index] for choice in rows.choices if choice.index]
    groups = [group for group in groups if group[0].cell.seed is not None]
    own = [(list(map(score_name, group[0].scores)), group[0].cell.data) for group in groups]
    for name in dict.fromkeys(name for names, data in own for name in ordered_scores(names, data)):
        measured = [sample for group in groups if (sample := items(folder, group, name))]
        samples = [sample for sample, which in measured if which == measured[0][1]]
        if samples and all(np.isin(sample.values, (0, 1)).all() for sample in samples):
            return _measured(name, samples)
    raise UserError(
        "The study has no score of right and wrong items, of which noise could be measured; `harness power` without "
        "--study uses assumptions."
    )


def describe(effect: float, seeds: int, noise_model: Assumptions, said: Sequence[str] = ()) -> str:
    """The items needed by number of seeds and methods, and the assumptions behind them."""
    rows = []
    for k in sorted({*SEEDS, seeds}):
        needed = [items_needed(effect, k, n, noise_model) for n in METHODS]
        rows.append([f"{k}{' *' if k == seeds else ''}", *("more seeds" if n is None else f"{n:,}" for n in needed)])
    head = ["Seeds", *(f"Items for {n} methods" for n in METHODS)]
    lines = [
        f"To detect a difference of {_points(f'{100 * effect:g}')} in {WANTED:.0%} of studies (two-sided p < {ALPHA}):",
        _answer(effect, seeds, noise_model),
        "",
        tabulate(rows, head, "pipe", disable_numparse=True, colalign=["right"] * len(head)),
        "",
        *(f"- {line}" for line in said),
        f"- Accuracy {noise_model.accuracy:.3g}; standard deviation between seeds "
        f"{_points(f'{100 * noise_model.seed_sd:.2g}')}. Correlation over items: {noise_model.between_seeds:.2g} "
        f"between seeds of a method, {noise_model.between_methods:.2g} between methods."
        + ("" if said else " `--study` measures these."),
        "- One seed compares two trained models, not two methods, by McNemar's exact test: its line excludes "
        "seed-to-seed variance.",
        "- Of several methods one is taken to be better than all others by that much; each of those is tested against "
        "it, corrected for all of them (studentized range).",
    ]
    if any("more seeds" in row for row in rows):
        lines.append("- More seeds: no number of items is enough with so few seeds.")
    return "\n".join(lines) + "\n"


def _points(number: str) -> str:
    return f"{number} point{'s' * (number != '1')}"


def _answer(effect: float, seeds: int, noise_model: Assumptions) -> str:
    """The items that two methods need, in a sentence."""
    two = "to tell two methods apart"
    n = items_needed(effect, seeds, 2, noise_model)
    if n is not None:
        return f"{units.plural(n, 'item')} per model with {units.plural(seeds, 'seed')}, {two}."
    for fewest in range(seeds + 1, MOST_SEEDS):
        if items_needed(effect, fewest, 2, noise_model) is not None:
            more = min(math.ceil(SPARE * fewest), MOST_SEEDS)
            items = units.plural(items_needed(effect, more, 2, noise_model) or MOST_ITEMS, "item")
            return (
                f"no number of items is enough with {units.plural(seeds, 'seed')}; it takes {fewest} seeds at least, "
                f"and with {more} of them {items} per model, {two}."
            )
    return f"more than {MOST_SEEDS} seeds, {two}."


def _measured(name: str, samples: list[Answers]) -> tuple[Assumptions, list[str]]:
    accuracy = float(np.mean([sample.values.mean() for sample in samples]))
    said = [f"Measured by {score_label(*name.split('/', 2))}."]
    noise_model = Assumptions(accuracy, design=_design(samples))
    alike = [_correlation(one.values[0], other.values[0]) for one, other in itertools.combinations(samples, 2)]
    repeated = [sample for sample in samples if len(sample.values) > 1]
    if alike:
        noise_model = replace(noise_model, between_methods=max(0.0, float(np.mean(alike))))
    else:
        said.append("The study has one method: the correlation between methods is assumed.")
    if repeated:
        levels = [statistics.seed_level(sample) for sample in repeated]
        of_items = [statistics.seed_level(Answers.independent(sample.values)) for sample in repeated]
        seeds = np.array([len(sample.values) for sample in repeated])
        freedom = seeds - 1
        pairs = [_correlation(*pair) for sample in repeated for pair in itertools.combinations(sample.values, 2)]
        observed = np.average(seeds * [level.variance for level in levels], weights=freedom)
        # As `_design`, groups explain at least as much as independent items would
        noise = max(np.average(seeds * [level.rest for level in of], weights=freedom) for of in (levels, of_items))
        sd, low, high = seed_sd(observed, noise, freedom.sum())
        noise_model = replace(noise_model, seed_sd=sd, between_seeds=float(np.mean(pairs)))
        said.append(
            f"Standard deviation between seeds: {100 * sd:.2g} points, 95% interval {100 * low:.2g} to "
            f"{100 * high:.2g}, from {freedom.sum() + len(repeated)} trained models of "
            f"{units.plural(len(repeated), 'method')}."
        )
    else:
        said.append("The study has one seed per method: the variance between seeds is assumed.")
    if noise_model.design >= 1.05:
        said.append(
            f"Items of a group (subject, passage or template) are alike: {noise_model.design:.2g} of them tell as much "
            "as one independent item. More items should come in more groups."
        )
    # Two seeds of one method answer at least as much alike as two methods do
    return replace(noise_model, between_seeds=max(noise_model.between_seeds, noise_model.between_methods)), said


def _design(samples: Sequence[Answers]) -> float:
    """The design effect of the items on differences between methods (of one method: on its score); at least 1."""
    means = [sample.values.mean(axis=0) for sample in samples]
    compared = [one - other for one, other in itertools.combinations(means, 2)] or means
    grouped, alone = (
        sum(statistics.over_items(values, clusters)[0] for values in compared)
        for clusters in (samples[0].clusters, np.arange(len(means[0])))
    )
    return max(1.0, float(grouped / alone)) if alone else 1.0


def seed_sd(observed: float, noise: float, freedom: int) -> tuple[float, float, float]:
    """The standard deviation of true accuracy between seeds, and its 95% interval; a proportion.

    observed: variance of the seeds' accuracies, pooled over methods, with `freedom` degrees of freedom; noise: the part
    of it that items explain, which many items make known. The interval is that of the sum by chi-square, less the noise
    (Tukey 1951; Williams, Biometrika 49, 1962). Variances below 0 are 0: no spread beyond that of the items.
    """
    ends = observed * freedom / special.chdtri(freedom, np.array([ALPHA / 2, 1 - ALPHA / 2]))
    low, high = np.sqrt(np.maximum(0.0, ends - noise))
    return max(0.0, observed - noise) ** 0.5, float(low), float(high)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two models' answers over items; 0 if one is right on all items or on none."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() and other.std() else 0.0
