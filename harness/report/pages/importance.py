"""How much each axis of a grid moves an outcome: permutation importance of a random forest over records.

Breiman, Random Forests, 2001, section 10. A forest is fitted to four fifths of the records; of the last fifth one axis
is shuffled, and what the forest then explains less of the outcome's variance (R²) is that axis' importance. Each fifth
takes its turn. Outcomes are ranked first, so that a run that nearly diverged does not hide all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

LEAST, MOST = 20, 2000  # records: fewer say nothing, more take long and change nothing
FOLDS, TREES, SHUFFLES = 5, 100, 5


@dataclass(frozen=True)
class Importance:
    """explained: R² of ranks on records that the forest has not seen; near or below 0 the axes say nothing of them.
    axes: by name the R² lost by shuffling it, most important first. records: how many were used."""

    explained: float
    axes: dict[str, float]
    records: int


def importance(axes: Mapping[str, Sequence[Any]], outcomes: Sequence[float | None]) -> Importance | None:
    """The importance of each of `axes` (a value for each record) for `outcomes`; the same input gives the same result.

    None with fewer than LEAST records that have an outcome, without two outcomes, or if fewer than two axes vary.
    """
    positions = [i for i, outcome in enumerate(outcomes) if outcome is not None and np.isfinite(outcome)]
    random = np.random.default_rng(0)
    if len(positions) > MOST:
        positions = sorted(random.choice(positions, MOST, replace=False).tolist())
    names = [name for name, values in axes.items() if len({str(values[i]) for i in positions}) > 1]
    target = rankdata([outcomes[i] for i in positions]) if positions else np.array([])
    if len(positions) < LEAST or len(names) < 2 or len(set(target)) < 2:
        return None
    table = np.array([_codes([axes[name][i] for i in positions]) for name in names]).T
    lost, explained = np.zeros(len(names)), 0.0
    for seen, unseen in KFold(FOLDS, shuffle=True, random_state=0).split(table):
        forest = RandomForestRegressor(TREES, random_state=0).fit(table[seen], target[seen])
        rest = table[unseen], target[unseen]
        explained += _explained(forest, *rest) / FOLDS
        permutation = permutation_importance(forest, *rest, scoring=_explained, n_repeats=SHUFFLES, random_state=0)
        lost += permutation.importances_mean / FOLDS
    order = np.argsort(-lost, kind="stable")
    return Importance(float(explained), {names[i]: float(lost[i]) for i in order}, len(positions))


def _explained(forest: RandomForestRegressor, table: np.ndarray, target: np.ndarray) -> float:
    """`forest.score`, without the checks that it makes again for every tree."""
    single = table.astype(np.float32)
    return r2_score(target, np.mean([tree.tree_.predict(single)[:, 0] for tree in forest.estimators_], axis=0))


def _codes(values: Sequence[Any]) -> list[float]:
    """Numbers as they are, other values by their place among the texts; -1 where there is none."""
    if all(value is None or isinstance(value, int | float) for value in values):
        return [-1.0 if value is None else float(value) for value in values]
    texts = sorted({str(value) for value in values if value is not None})
    return [-1.0 if value is None else float(texts.index(str(value))) for value in values]
