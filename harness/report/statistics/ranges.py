"""The studentized range: how surely the largest of all differences between several means is no luck."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import special

NODES = 64  # of each quadrature
TAIL = 1e-10  # of the distribution of the error that is left out


def range_p(p: float, freedom: float, methods: int) -> float:
    """The chance that any two of `methods` equal means differ as surely as the two-sided `p` of one pair says.

    freedom: of Student's t that has this p. So with an estimate of the error that all pairs share (Tukey's studentized
    range); errors by pair make it safe (Kramer, Biometrics 12, 1956; Hayter, Ann. Stat. 12, 1984). Between p and the
    number of pairs times p (Bonferroni).
    """
    most = min(1.0, math.comb(methods, 2) * p)
    if methods <= 2 or p <= 0 or p >= 1:
        return most
    freedom = max(freedom, 1.0)
    distance = -float(special.ndtri(p / 2) if math.isinf(freedom) else special.stdtrit(freedom, p / 2))
    errors, weights = _errors(float(np.format_float_positional(freedom, 4, fractional=False)))
    beyond = 1 - _within(2**0.5 * distance * errors, methods)
    return float(np.clip(weights @ beyond, p, most))


def range_quantile(alpha: float, freedom: float, methods: int) -> float:
    """The distance in standard errors of a difference that any two of `methods` equal means exceed with `alpha`."""
    low, high = alpha / math.comb(methods, 2), alpha
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if range_p(middle, freedom, methods) > alpha else (middle, high)
    return -float(special.ndtri(low / 2) if math.isinf(freedom) else special.stdtrit(max(freedom, 1.0), low / 2))


def _within(width: np.ndarray, methods: int) -> np.ndarray:
    """The chance that the range of as many standard normal numbers is at most `width`."""
    nodes, weights = _legendre(-8.0, 8.0)
    below = special.ndtr(nodes) - special.ndtr(nodes - width[:, None])
    density = np.exp(-(nodes**2) / 2) / (2 * math.pi) ** 0.5
    return methods * below ** (methods - 1) @ (density * weights)


@functools.lru_cache(maxsize=1024)
def _errors(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """An estimated error by the true one: its values and their chances."""
    if freedom > 1e5:
        return np.ones(1), np.ones(1)
    ends = np.log(special.gammaincinv(freedom / 2, TAIL)), np.log(special.gammainccinv(freedom / 2, TAIL))
    nodes, weights = _legendre(*map(float, ends))
    chances = np.exp(freedom / 2 * nodes - np.exp(nodes) - special.gammaln(freedom / 2)) * weights
    return np.exp(nodes / 2) / (freedom / 2) ** 0.5, chances / chances.sum()


@functools.cache
def _unit() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(NODES)


def _legendre(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = _unit()
    return (nodes + 1) / 2 * (high - low) + low, weights * (high - low) / 2
