"""Many comparisons at once: corrected p-values, and letters for those that can't be told apart."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from harness.report.statistics.ranges import range_p


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


OTHERS = 0.1  # of the chances of error, for differences without the best method


class Family(NamedTuple):
    """Tests of methods that are compared with each other, (methods, methods), best first: what is above the diagonal.

    p, freedom: of each pair; of Student's t, or infinite. all_pairs: whether the next best ones are tested likewise;
    else the first row alone counts.
    """

    p: np.ndarray
    freedom: np.ndarray
    all_pairs: bool = True


def step_charge(left: int, methods: int, all_pairs: bool) -> float:
    """Times that a p-value from the best one counts when `left` of `methods` are left, the best included.

    Some of the 5% are left to the other methods where two of those may be equal too.
    """
    return 1 / (1 - OTHERS) if all_pairs and methods - left > 1 else 1.0


@dataclass
class _Steps:
    """How far the tests of a family have come: the best method at `top` against those of `left`."""

    family: Family
    top: int = 0
    left: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = list(range(1, len(self.family.p)))

    @property
    def next(self) -> tuple[float, int]:
        """The least p-value of those that are left, and whose it is."""
        return min((float(self.family.p[self.top, other]), other) for other in self.left)

    @property
    def may_tie(self) -> int:
        """Of how many methods there may be ties that are tested now or later."""
        return max(len(self.left) + 1, len(self.family.p) - self.top - 1 if self.family.all_pairs else 0)

    @property
    def charge(self) -> float:
        return step_charge(len(self.left) + 1, len(self.family.p) - self.top, self.family.all_pairs)

    def reject(self, other: int) -> None:
        self.left.remove(other)
        if not self.left and self.family.all_pairs:
            self.top += 1
            self.left = list(range(self.top + 1, len(self.family.p)))


def stepwise(families: Sequence[Family]) -> list[np.ndarray]:
    """The p-values of each family, corrected for all of them together, (methods, methods): below 0.05 is a difference.

    Each method is tested against the best one. Which method is the best is itself observed, so the largest difference
    from it is the largest of all pairs of methods: it has the p-value of the studentized range (`range_p`). A method
    that is found worse is out, and of those that are left, the best included, the largest difference counts (Newman &
    Keuls' steps, in the best one's group). Once all others are found worse than the best one, the next best is tested
    likewise: where the best one has ties, that takes a false difference first, so it needs no share of the 5%. Else the
    others are told apart by a tenth of the 5% (OTHERS), in one step. The chances of several families add up
    (Bonferroni). Of two methods p is as it was, and of several families of two it is Holm's. nan where nothing was
    tested.

    All others are also worse than the best one if each test alone says so: that it is better than all of them is wrong
    in 5% where it has one tie, and less often where it has more (Gutmann & Maymin, Ann. Stat. 15, 1987).
    """
    corrected = [np.full(np.shape(family.p), np.nan) for family in families]
    steps = [_Steps(family) for family in families]
    sizes = [each.may_tie for each in steps]
    worst = 0.0
    while tested := [(of.next, f) for f, of in enumerate(steps) if of.left]:
        (p, other), f = min(tested)
        of = steps[f]
        freedom = float(of.family.freedom[of.top, other])
        total = of.charge * range_p(p, freedom, len(of.left) + 1)
        total += sum(range_p(p, freedom, each.may_tie) for each in steps if each is not of and each.left)
        worst = max(worst, min(1.0, total))
        corrected[f][of.top, other] = corrected[f][other, of.top] = worst
        of.reject(other)
    for f, family in enumerate(families):
        _tell_best(corrected[f], family, len(families))
        if family.all_pairs:
            _tell_others(corrected[f], family, [size for g, size in enumerate(sizes) if g != f])
    return corrected


def _tell_best(corrected: np.ndarray, family: Family, families: int) -> None:
    """Lower the corrected p-values of the best one's pairs to the largest p of them, times the number of families."""
    if len(corrected) > 1:
        charge = step_charge(2, len(corrected), family.all_pairs)
        sure = min(1.0, families * charge * float(family.p[0, 1:].max()))
        corrected[0, 1:] = corrected[1:, 0] = np.fmin(corrected[0, 1:], sure)


def _tell_others(corrected: np.ndarray, family: Family, elsewhere: Sequence[int]) -> None:
    """Lower the corrected p-values of pairs without the best one, where one step tells them more easily.

    elsewhere: how many methods other families have. Where the best one has ties, at most two methods fewer than all
    can be equal to each other and not to it. Of three methods there is no such pair, so nothing is shared.
    """
    methods = len(family.p)
    share = OTHERS if methods > 3 else 1.0
    for i, j in itertools.combinations(range(1, methods), 2):
        p, freedom = float(family.p[i, j]), float(family.freedom[i, j])
        total = sum(range_p(p, freedom, size) for size in (max(2, methods - 2), *elsewhere)) / share
        corrected[i, j] = corrected[j, i] = min(float(corrected[i, j]), total)


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
