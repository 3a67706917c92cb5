"""How narrow an interval over few seeds can be that covers whatever the spread of the seeds, beside ours.

    python benchmarks/attainable.py

The variance of a mean over seeds and items is known but for the seeds' own: in units of the rest (what differs by seed
and item) it is 1 + SHARED + spread, and the few seeds' means show (1 + spread) χ² / degrees. An interval is a half
length for each value that they may show. Its coverage is a concave function of these halves, so the shortest intervals
that cover enough at every spread follow from convex programming: no other function of the same numbers is shorter.

Writes benchmarks/measured/attainable.json, which benchmarks/VALIDITY.md shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import special
from scipy.optimize import minimize

from harness.record.files import write_json
from harness.report.statistics import Level, combined_known

MEASURED = Path(__file__).parent / "measured" / "attainable.json"
SHARED = 1.0  # what all seeds' answers to the items share: 400 items and two seeds of benchmarks/simulated.py have 1.1
SPREAD = 0.25  # of the seeds, 1 point there
SPREADS = np.concatenate([[0, 0.1, 0.25, 0.5], np.logspace(0, 3, 20)])
CHANCES = (np.arange(600) + 0.5) / 600
KNOTS = np.concatenate([[0], np.logspace(-2, np.log10(3000), 44)])
CASES = {"1 method, 2 seeds": 1, "2 methods, 2 seeds": 2, "2 methods, 3 seeds": 4, "5 methods, 2 seeds": 5}
CASES |= {"5 methods, 3 seeds": 10}
NORMAL = float(special.ndtri(0.975))


def shown(freedom: int, spread: float) -> np.ndarray:
    """Equally likely values of the variance of the seeds' means, pooled over methods, in units of the rest."""
    return (1 + spread) * 2 * special.gammaincinv(freedom / 2, CHANCES) / freedom


def needed(spread: float) -> float:
    """The standard error that an interval of known error would have."""
    return float(1 + SHARED + spread) ** 0.5


def shortest(freedom: int, least: float) -> float:
    """The mean length at SPREAD of the shortest intervals that cover at least `least` at each of SPREADS, in times of
    the needed one. Halves are linear between KNOTS."""
    scale = (KNOTS * special.stdtrit(freedom, 0.975) ** 2 + NORMAL**2 * (1 + SHARED)) ** 0.5
    at = {spread: _weights(shown(freedom, spread)) * scale for spread in (*SPREADS, SPREAD)}
    cost = at[SPREAD].mean(axis=0) / NORMAL / needed(SPREAD)

    def margins(halves: np.ndarray) -> np.ndarray:
        covers = [(2 * special.ndtr(at[s] @ halves / needed(s)) - 1).mean() for s in SPREADS]
        return 100 * (np.array(covers) - least)

    def slopes(halves: np.ndarray) -> np.ndarray:
        density = [np.exp(-((at[s] @ halves / needed(s)) ** 2) / 2) * (2 / np.pi) ** 0.5 / needed(s) for s in SPREADS]
        return 100 * np.array([d @ at[s] / len(d) for d, s in zip(density, SPREADS, strict=True)])

    found = minimize(
        lambda halves: cost @ halves,
        np.ones(len(KNOTS)),
        jac=lambda halves: cost,
        bounds=[(0, 3)] * len(KNOTS),
        constraints=[{"type": "ineq", "fun": margins, "jac": slopes}],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-7},
    )
    assert found.success, found.message
    return float(found.fun)


def _weights(values: np.ndarray) -> np.ndarray:
    """(values, knots): of the linear interpolation between KNOTS."""
    values = np.clip(values, 0, KNOTS[-1])
    i = np.clip(np.searchsorted(KNOTS, values) - 1, 0, len(KNOTS) - 2)
    part = (values - KNOTS[i]) / (KNOTS[i + 1] - KNOTS[i])
    weights = np.zeros((len(values), len(KNOTS)))
    weights[np.arange(len(values)), i], weights[np.arange(len(values)), i + 1] = 1 - part, part
    return weights


def ours(freedom: int) -> dict[str, float]:
    """Of `combined_known`: mean and median length at SPREAD, in times of the needed one, and its coverage over
    SPREADS."""
    halves, covers = {}, []
    for spread in (*SPREADS, SPREAD):
        variance, degrees = combined_known(Level(shown(freedom, spread), 1.0, freedom), 1 + SHARED, 1e6)
        halves[spread] = special.stdtrit(degrees, 0.975) * variance**0.5 / needed(spread)
        covers.append(float((2 * special.ndtr(halves[spread]) - 1).mean()))
    at = halves[SPREAD] / NORMAL
    return {"mean": float(at.mean()), "median": float(np.median(at)), "least": min(covers), "most": max(covers)}


def main() -> None:
    found = {
        case: ours(freedom) | {"at least 93%": shortest(freedom, 0.93), "at least 95%": shortest(freedom, 0.95)}
        for case, freedom in CASES.items()
    }
    write_json(found, MEASURED)


if __name__ == "__main__":
    main()
