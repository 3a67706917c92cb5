"""Seconds of a step's work on a card that was not calibrated: what kernels reach of its published rates.

The device waits for the host in some parts of a step, and the host for the device in others, so a step takes longer
than the longer of both: where they are equal, 1.4 times.

docs/cards.md has the sources of these constants, and how well the times agree with published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PRODUCTS = 0.8  # share of a card's rate that large products reach, where its file has none
ATTENTION = 0.5  # share of its rate that attention reaches, of the products that a causal mask leaves
BANDWIDTH = 0.85  # share of its memory's rate
KERNEL = 3e-6  # seconds of a kernel beyond its work: it begins, and its last blocks end
LAUNCH = 17e-6  # seconds in which the host begins an operation of an eager step
# By card the least and the most times that published runs took of their estimate, where it has five or more, and over
# all cards. From `benchmarks/cards.py`.
SPREADS: dict[str, tuple[float, float]] = {
    "a100_80": (0.8, 1.32),
    "b200": (1.03, 1.15),
    "h100": (0.88, 1.15),
    "h200": (0.9, 1.1),
    "rtx_5090": (0.7, 0.96),
}
SPREAD = (0.7, 1.41)


def seconds(work: Mapping[str, float], reached: float | None = None, launch: float = LAUNCH) -> float:
    """Seconds of `work`, as a prediction has it, of what the device takes and what the host does.

    reached: the share of its rate that the card's large products reach (null: PRODUCTS). launch: of the host, for an
    operation.
    """
    device = work["products"] / (reached or PRODUCTS) + work["attention"] / ATTENTION + work["moved"] / BANDWIDTH
    return math.hypot(device + KERNEL * work["launches"], launch * work["launches"])


def spread(card: str) -> tuple[float, float]:
    """The least and the most times that published runs of `card` took of their estimate; of all cards without any."""
    return SPREADS.get(card, SPREAD)
