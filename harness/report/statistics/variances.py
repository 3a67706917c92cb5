"""Variances of means: of seeds, shrunk over methods, and combined with those of items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from harness.report.statistics.ties import false_discoveries

_FREEDOMS = np.concatenate([np.linspace(1, 30, 1000), np.logspace(1.5, 6, 200)])
_QUANTILES = special.stdtrit(_FREEDOMS, 0.975)


class Level(NamedTuple):
    """Of a mean over seeds: its variance, what of that is the rest's (by seed and item), and its degrees of freedom.

    Of one seed no variance is known, and none counted. Each is a number, or an array of one for each of many means.
    """

    variance: float | np.ndarray
    rest: float | np.ndarray
    freedom: float | np.ndarray


def moderated(
    variances: np.ndarray, freedoms: np.ndarray, trusted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Variances of several methods shrunk towards their mean, and the degrees of freedom that they have then.

    variances: (methods, …); freedoms: (methods,), all above 0; trusted: `trust` of the methods (None: 1 each). Two
    seeds tell next to nothing of one method's variance, but those of six methods together tell much. Each method's own
    variance counts with its own degrees, and the mean of all with those of the other methods (Smyth, Stat. Appl. Genet.
    Mol. Biol. 3, 2004), times the chance that this method varies no more than they do (Phipson et al., Ann. Appl. Stat.
    10, 2016). Of a variance above the others' that chance is the p-value of an F test, corrected by
    `false_discoveries`: among many methods it takes a larger variance to be no luck. So an erratic method keeps its
    own, and of many that vary alike none does.
    """
    variances, freedoms = np.asarray(variances, dtype=float), np.asarray(freedoms, dtype=float)
    d = freedoms.reshape(-1, *[1] * (variances.ndim - 1))
    if len(variances) < 2:
        return variances, d + np.zeros_like(variances)
    total, degrees = (d * variances).sum(axis=0), d.sum()
    others = np.maximum((total - d * variances) / (degrees - d), 1e-12 * variances) + 1e-300
    p = np.where(variances > others, special.fdtrc(d, degrees - d, variances / others), 1.0)
    prior = (degrees - d) * false_discoveries(p)
    if trusted is not None:
        prior = prior * trusted.reshape(d.shape)
    return (prior * total / degrees + d * variances) / (prior + d), prior + d


def trust(freedoms: np.ndarray) -> np.ndarray:
    """How much the other methods' variance counts for each: the cube of its degrees by the most that one has.

    A method of fewer seeds than the others can hide from the test of `moderated`, and may have few because it is
    erratic: runs that failed. With two seeds of five the others hardly count, which keeps false differences below 5% if
    such a method varies five times as much as they do.
    """
    return (freedoms / freedoms.max()) ** 3


def combined(seeds: Level, items: float, freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """The variance of a difference of means over seeds and items and its degrees of freedom; numbers or arrays.

    items: the variance over items, which has the rest in it that the seeds' has too. freedom: of the items. For parts
    of which none is known much better than the others, as of costs.

    The degrees are those whose 97.5% quantile of Student's t is that of Cochran (Biometrics 20, 1964): the quantiles of
    both parts, weighted by their variances. Satterthwaite's are too many where two methods have two seeds each: their
    intervals cover 92%.
    """
    alone = np.maximum(0.0, items - seeds.rest)
    total = seeds.variance + alone
    parts = seeds.variance * _quantile(seeds.freedom) + alone * _quantile(freedom)
    mean = np.where(total > 0, parts / np.where(total > 0, total, 1.0), _quantile(freedom))
    return total, np.interp(-mean, -_QUANTILES, _FREEDOMS)


def combined_known(seeds: Level, items: float, freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """As `combined`, of a mean or a difference of means over items: shorter, since many items tell the rest well.

    Only what the seeds' means vary beyond the rest is left to the few seeds. Few seeds may vary less than the rest by
    luck, so not all of it is deducted: of its variance the part (z / t) ^ (rest / items), with the quantiles of the
    items and of the seeds. So intervals cover 93 to 98% at any spread of seeds that methods have alike, two seeds of
    one method included. The degrees are those whose 97.5% quantile makes the half of the interval the root of the sum
    of both parts' squared halves (Graybill & Wang, J. Am. Stat. Assoc. 75, 1980; Zou & Donner, Stat. Med. 27, 2008).
    """
    by_items = np.maximum(items, seeds.rest)
    few, many = _quantile(seeds.freedom), _quantile(freedom)
    beyond = beyond_rest(seeds, items, freedom)
    total = by_items + beyond
    mean = np.where(total > 0, (by_items * many**2 + beyond * few**2) / np.where(total > 0, total, 1.0), many**2) ** 0.5
    return total, np.interp(-mean, -_QUANTILES, _FREEDOMS)


def beyond_rest(seeds: Level, items: float | np.ndarray, freedom: float) -> np.ndarray:
    """What of the seeds' variance is left to the few seeds, as in `combined_known`."""
    by_items = np.maximum(items, seeds.rest)
    few, many = _quantile(seeds.freedom), _quantile(freedom)
    deducted = seeds.rest * (many / np.maximum(few, many)) ** (seeds.rest / np.where(by_items > 0, by_items, 1.0))
    return np.maximum(0.0, seeds.variance - deducted)


def _quantile(freedom: float | np.ndarray) -> np.ndarray:
    return np.interp(freedom, _FREEDOMS, _QUANTILES)
