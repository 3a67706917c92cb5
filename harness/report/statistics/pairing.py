"""Whether methods are compared seed by seed: by the shorter of two intervals, at a level that pays for the choice.

One seed means the same batches to all methods, so it may move their scores alike: score = method + seed + own, where
`seed` is shared. If it moves them much, a difference taken seed by seed has a far smaller variance; if it does not,
pairing throws degrees of freedom away. How much a seed moves methods alike is known from the same few numbers, so an
estimate that uses what it finds there (REML, a restricted posterior) is wrong in up to 14% of studies of equal methods.
Both intervals are therefore made, and the shorter one is taken with as small a chance of error each that both together
err in 5% (`charge`). That costs at most 8% of the length, whatever the number of seeds, and is one rule for all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from harness.report.statistics.variances import moderated, trust

ALPHA = 0.05
NONE, SURE = 1.0, 6.0
"""Degrees of freedom of the paired variance up to which seeds are not paired, as one degree tells nothing, and from
which both intervals have the same chance of error; between them the paired one's chance grows in proportion."""
GRID = 100  # points of the quadrature
ROUNDING = 1e-12  # residuals below this part of the largest score are 0: seeds that move methods exactly alike


class SeedEffect(NamedTuple):
    """The variance of a method's score over seeds, without what a seed adds to all of them, with degrees of freedom."""

    own: float
    freedom: float


def seed_effects(scores: Mapping[int, np.ndarray], seeds: Mapping[int, Sequence[int | None]]) -> dict[int, SeedEffect]:
    """Of the methods' scores, one a seed, by least squares on method + seed; empty if no two share two seeds.

    scores, seeds: by method; both (seeds,), of which any may be missing. Own variances are shrunk over methods
    (`moderated`). What an erratic method leaves in the residuals of the others is put back into its own variance
    (Grubbs, J. Am. Stat. Assoc. 43, 1948), and not taken out of theirs.
    """
    design, sides = _design(seeds)
    if not len(design):
        return {}
    columns, singular, _ = np.linalg.svd(design, full_matrices=False)
    basis = columns[:, singular > 1e-9 * singular[0]]
    residual = np.eye(len(design)) - basis @ basis.T
    freedom = sides.T @ np.diag(residual)
    repeated = freedom > 1e-6  # a method whose seeds no other has tells nothing
    if freedom.sum() < 0.5:
        return {}
    values = np.concatenate([*scores.values()])
    left = residual @ values
    left[np.abs(left) < ROUNDING * np.abs(values).max()] = 0.0
    squares = sides.T @ left**2
    own = squares[repeated] / freedom[repeated]
    mixed = (sides.T @ residual**2 @ sides)[np.ix_(repeated, repeated)]  # whose variance is in whose squares
    if len(own) > 2 and np.linalg.cond(mixed) < 1e3:
        own = np.maximum(own, np.linalg.solve(mixed, squares[repeated]))
    methods = [method for method, several in zip(scores, repeated, strict=True) if several]
    shrunk = zip(*moderated(own, freedom[repeated], trust(freedom[repeated])), strict=True)
    return {method: SeedEffect(*map(float, level)) for method, level in zip(methods, shrunk, strict=True)}


def _design(seeds: Mapping[int, Sequence[int | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each score the indicators of its method and seed, (scores, methods + seeds), and of its method alone."""
    cells = [(method, seed) for method, each in seeds.items() for seed in each]
    methods, names = list(seeds), list(dict.fromkeys(seed for _, seed in cells))
    sides = np.zeros((len(cells), len(methods)))
    of_seed = np.zeros((len(cells), len(names)))
    for row, (method, seed) in enumerate(cells):
        sides[row, methods.index(method)] = of_seed[row, names.index(seed)] = 1
    return np.hstack([sides, of_seed]), sides


def charge(freedom: float, paired: float) -> tuple[float, float]:
    """By how much the unpaired and the paired interval are wider if the shorter is taken, than if each was alone.

    freedom, paired: degrees of freedom of their variances. The choice is dearest where seeds move no two methods alike.
    There the paired variance is a part of the sum of squares that makes the unpaired one, as large as the beta
    distribution has it; the chances of error are such that one of both errs in 5% of studies.
    """
    return _charge(*(float(np.format_float_positional(max(f, 1.0), 3, fractional=False)) for f in (freedom, paired)))


@functools.lru_cache(maxsize=4096)
def _charge(freedom: float, paired: float) -> tuple[float, float]:
    ratio = min(1.0, (paired - NONE) / (SURE - NONE))
    if ratio <= 0:
        return 1.0, math.inf
    part = special.betaincinv(paired / 2, max(freedom - paired, 1e-3) / 2, (np.arange(GRID) + 0.5) / GRID)
    scale = (part * freedom / paired) ** 0.5  # of the paired error by the unpaired one

    def errs(alpha: float) -> float:
        bound = np.minimum(_quantile(freedom, alpha), _quantile(paired, alpha * ratio) * scale)
        return float(2 * special.stdtr(freedom, -bound).mean())

    low, high = ALPHA / 3, ALPHA
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if errs(middle) < ALPHA else (low, middle)
    widths = (_quantile(f, alpha) / _quantile(f, ALPHA) for f, alpha in ((freedom, low), (paired, low * ratio)))
    unpaired, by_seed = (float(width) for width in widths)
    return unpaired, by_seed


def _quantile(freedom: float, alpha: float) -> float:
    return -float(special.stdtrit(freedom, alpha / 2))
