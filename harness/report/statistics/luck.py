"""What a choice adds to an error: the best of several looks better than it is."""

from __future__ import annotations

import functools

import numpy as np
from scipy import special

ALPHA = 0.05
LUCKY = 0.04  # of studies in which the lucky end errs; what was picked by luck hardly errs at the other end
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(48)


def luck(rivals: int, share: float) -> float:
    """Times that the half of an interval on the lucky side is longer, if its estimate was picked of `rivals`.

    share: of the error's square, what a rival has for itself; of the rest all have the same. Whichever one was picked,
    its luck is at most that of the luckiest of equal ones, so the end covers simultaneously, and however the choice was
    made. Where it was made by something else than luck, the interval covers up to 97.5%.
    """
    if rivals < 2 or share < 1e-3:
        return 1.0
    return _luck(rivals, float(np.ceil(100 * min(share, 1.0)) / 100))


@functools.lru_cache(maxsize=1024)
def _luck(rivals: int, share: float) -> float:
    common, alone = (1 - share) ** 0.5 * NODES, share**0.5
    one = -float(special.ndtri(ALPHA / 2))
    low, high = one, 2 * one + 2 * np.log(rivals)
    for _ in range(30):
        middle = (low + high) / 2
        surely = WEIGHTS @ special.ndtr((middle - common) / alone) ** rivals / WEIGHTS.sum()
        low, high = (middle, high) if surely < 1 - LUCKY else (low, middle)
    return float(high) / one
