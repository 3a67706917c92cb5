"""Many comparisons at once: corrected p-values, and letters for those that can't be told apart."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values corrected for how many there are (Holm, Scand. J. Stat. 6, 1979): below 0.05 is a difference.

    The test holds it against statsmodels', which takes a second to import and collects garbage at every call.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return corrected


def false_discoveries(p: np.ndarray) -> np.ndarray:
    """p-values, (tests, …), corrected over the first axis (Benjamini & Hochberg, J. R. Stat. Soc. B 57, 1995).

    Of the tests at or below a corrected value, at most that share is expected to be there by chance.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(-p, axis=0)
    shares = np.arange(len(p), 0, -1).reshape(-1, *[1] * (p.ndim - 1)) / len(p)
    stepped = np.minimum.accumulate(np.take_along_axis(p, order, axis=0) / shares, axis=0)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, stepped, axis=0)
    return corrected


class Family(NamedTuple):
    """p-values that are tested together.

    with_best: of the best observed method against each other one; else of all pairs.
    """

    p: Sequence[float]
    with_best: bool


def stepwise(families: Sequence[Family]) -> list[np.ndarray]:
    """The p-values of each family, corrected for all of them together: below 0.05 is a difference.

    Of families of all pairs alone it is Holm's correction. Which method is the best one is itself observed, so the
    largest difference from it is the largest of all pairs of methods, and counts for as many tests. Once a method is
    found worse it is out: of m methods that are left, the best included, m (m - 1) / 2 pairs count. That is fewer than
    all pairs that are left, which makes it easier to tell the others (Newman & Keuls' steps, in the best one's group).
    """
    left = [len(family.p) for family in families]
    corrected = [np.ones(len(family.p)) for family in families]
    worst = 0.0
    for p, f, i in sorted((p, f, i) for f, family in enumerate(families) for i, p in enumerate(family.p)):
        pairs = sum(n * (n + 1) / 2 if family.with_best else n for n, family in zip(left, families, strict=True))
        corrected[f][i] = worst = max(worst, min(1.0, float(p) * pairs))
        left[f] -= 1
    return corrected


def letters(different: np.ndarray) -> list[str]:
    """A compact letter display: two members share a letter if and only if they are not `different`.

    different: (n, n) symmetric booleans, members best first. By insertion and absorption (Piepho, J. Comput. Graph.
    Stat. 13, 2004). A letter stands for a set of which no two are different, so as displayed ties are transitive: who
    has the same letter as two others ties them to each other. Not being told apart is itself not transitive, so a
    member may have two letters: it is tied with the members of two sets that differ.
    """
    columns = [set(range(len(different)))]
    for i, j in np.argwhere(np.triu(different)).tolist():
        split = [column for column in columns if {i, j} <= column]
        columns = [column for column in columns if not {i, j} <= column]
        columns += [column - {one} for column in split for one in (i, j)]
        columns = list({frozenset(column): column for column in columns}.values())
        columns = [column for column in columns if not any(column < other for other in columns)]
    columns.sort(key=sorted)
    names = [string.ascii_lowercase[k % 26] + "'" * (k // 26) for k in range(len(columns))]
    return [
        "".join(name for name, column in zip(names, columns, strict=True) if i in column) for i in range(len(different))
    ]
