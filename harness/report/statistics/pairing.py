"""What a seed does to all methods alike, and what each method's score varies beside it.

One seed means the same batches to all methods, so it may move their scores alike: score = method + seed + own, where
`seed` is shared. A difference taken seed by seed is free of the shared part, whatever its size, and what is left of the
methods' sums of squares tells its variance with exact degrees of freedom (a two-way analysis of variance). So seeds are
paired wherever the design allows it; the scores have no part in that, so nothing is to be paid for a choice.

Without seeds that move methods alike that costs degrees of freedom: of two methods half of them, of six a sixth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from harness.report.statistics.variances import moderated, trust

LEAST = 1.0  # degrees of freedom of all methods' own variances up to which seeds are not paired: one tells nothing
ROUNDING = 1e-12  # residuals below this part of the largest score are 0: seeds that move methods exactly alike


class SeedEffect(NamedTuple):
    """The variance of a method's score over seeds, without what a seed adds to all of them, with degrees of freedom."""

    own: float
    freedom: float


def seed_effects(scores: Mapping[int, np.ndarray], seeds: Mapping[int, Sequence[int | None]]) -> dict[int, SeedEffect]:
    """Of the methods' scores, one a seed, by least squares on method + seed; empty if LEAST degrees are left or fewer.

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
    if freedom.sum() < LEAST + 1e-6:
        return {}
    values = np.concatenate([*scores.values()])
    left = residual @ values
    left[np.abs(left) < ROUNDING * np.abs(values).max()] = 0.0
    squares = sides.T @ left**2
    mixed = (sides.T @ residual**2 @ sides)[np.ix_(repeated, repeated)]
    own = own_variances(squares[repeated], freedom[repeated], mixed)
    methods = [method for method, several in zip(scores, repeated, strict=True) if several]
    shrunk = zip(*moderated(own, freedom[repeated], trust(freedom[repeated])), strict=True)
    return {method: SeedEffect(*map(float, level)) for method, level in zip(methods, shrunk, strict=True)}


def own_variances(squares: np.ndarray, freedom: np.ndarray, mixed: np.ndarray) -> np.ndarray:
    """Each method's own variance, (methods, …), of the squares of its residuals, (methods, …), and their degrees.

    mixed: (methods, methods), whose variance is in whose squares.
    """
    own = squares / freedom.reshape(-1, *[1] * (squares.ndim - 1))
    if len(own) > 2 and np.linalg.cond(mixed) < 1e3:
        own = np.maximum(own, np.linalg.solve(mixed, squares))
    return own


def told_by_others(scores: Mapping[int, np.ndarray], seeds: Mapping[int, Sequence[int | None]]) -> float:
    """The part, 0 to 1, of the degrees of freedom of other methods' variances that a method's own seeds do not tell.

    scores, seeds: as of `seed_effects`. Where seeds move methods alike, all of their variances rest on the same few
    draws. Of M methods whose scores correlate by r from seed to seed, the mean variance has M / (1 + (M - 1) r²) times
    the degrees that one has, instead of M times (Satterthwaite, Biometrics 2, 1946). The correlation is the mean one of
    all pairs, where its part that luck explains (by an F test) does not count.
    """
    names = {seed: column for column, seed in enumerate(dict.fromkeys(s for each in seeds.values() for s in each))}
    present = np.zeros((len(seeds), len(names)))
    values = np.zeros_like(present)
    for row, method in enumerate(seeds):
        columns = [names[seed] for seed in seeds[method]]
        present[row, columns], values[row, columns] = 1.0, scores[method] - scores[method].mean()
    both = present @ present.T
    pairs = np.triu(both > 1, 1)
    if not pairs.any():
        return 1.0
    count, sums = np.maximum(both, 1.0), values @ present.T
    squares = (values**2 @ present.T - sums**2 / count)[pairs | pairs.T].sum() / 2
    products = (values @ values.T - sums * sums.T / count)[pairs].sum()
    if not 0 < products < squares * (1 - ROUNDING):
        return float(products <= 0)
    methods, freedom = len(seeds), float(both[pairs].mean()) - 1
    ratio = products / (squares - products)  # of the variance that methods share to their own
    lucky = float(special.fdtrc(freedom, freedom * (methods - 1), 1 + methods * ratio))
    shared = 1 - 1 / (1 + ratio * (1 - lucky))
    return (1 - shared**2) / (1 + (methods - 1) * shared**2)


def _design(seeds: Mapping[int, Sequence[int | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each score the indicators of its method and seed, (scores, methods + seeds), and of its method alone."""
    cells = [(method, seed) for method, each in seeds.items() for seed in each]
    methods, names = list(seeds), list(dict.fromkeys(seed for _, seed in cells))
    sides = np.zeros((len(cells), len(methods)))
    of_seed = np.zeros((len(cells), len(names)))
    for row, (method, seed) in enumerate(cells):
        sides[row, methods.index(method)] = of_seed[row, names.index(seed)] = 1
    return np.hstack([sides, of_seed]), sides
