"""Situations of `make validity` in which a study is run again with other seeds: does it decide the same?

Both runs have the same items and methods, as a rerun does. Only pairs of runs whose intervals overlap count: of every
method the interval of one run overlaps with that of the other.

    wrong           what to take differs: the method; or, where several tie, the one to take under a limit of memory
    other method    each run takes a method, and not the same
    other cheap     each run names a method to take under a limit, and not the same
    other tie       the methods that tie differ

Where the truth lies at the border, a tie in one run and a method in the other are both right, and so is a method that
ties in one run alone. There `wrong` is `other method` (where memories lie at the border, `other cheap`), and `differs`
what `wrong` is elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from simulated import Noise, Study, answer, known
from situations import FLAT, Outcome, situation

from harness.record import Kinds
from harness.report.answer.compared import ComparedMethods
from harness.report.answer.limits import Limits
from harness.report.answer.place import PlaceAnswer
from harness.report.pairwise import contests
from harness.report.tables.rows import group

PEAKS = {"full": 2800.0, "lora": 2000.0, "qlora": 1400.0, "dora": 2200.0, "galore": 2500.0, "vera": 1800.0}  # MiB
SIX = tuple(PEAKS)

EQUAL = dict.fromkeys(SIX, 0.5)
WORSE = {"five equal and one much worse": EQUAL | {"full": 0.3}, "the cheapest is much worse": EQUAL | {"qlora": 0.3}}
CLEAR = {"one clearly better": EQUAL | {"full": 0.7}}
BORDER = {f"one better by {points:g} points": EQUAL | {"full": 0.5 + points / 100} for points in (2, 5, 10)}
BORDER |= {
    f"two better by {points:g} points": EQUAL | {"full": 0.5 + points / 100, "qlora": 0.5 + points / 100}
    for points in (5, 10)
}
NEAR = (1.01, 1.02, 1.03)  # ratios of memory that are hardly told apart
SEEDS = {"3 seeds": {"seeds": 3}, "5 seeds": {"seeds": 5}, "5 seeds, 57 subjects × 20": {"seeds": 5, "grouped": True}}
ONE = {"1 seed": {"seeds": 1}}


def cases(truths: dict[str, dict[str, float]], seeds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each of `truths`, the true accuracies by method, with each of `seeds`, by the names of both."""
    return {
        f"{truth}, {how}": {"values": values, **kind} for truth, values in truths.items() for how, kind in seeds.items()
    }


def decided(
    draw: np.random.Generator, values: dict[str, float], seeds: int, noise: Noise, items: int, step: float
) -> PlaceAnswer:
    """The answer of one run. items: the seed of what all runs have in common. step: as of `runs`."""
    study = Study(draw)
    answer(study, "wordmath", values, seeds, noise, items=np.random.default_rng(items))
    for made in study.records:
        peak = PEAKS[made.cell.method] if step == 1 else 1400 * step ** SIX.index(made.cell.method)
        mib = peak * math.exp(draw.normal(0, 0.005))  # batches differ from seed to seed
        made.probe = replace(known(made.probe), peak=Kinds(int(mib * 2**20), 0, 0, 0, 0))
    rows = group(study.records)
    row_of = [row for row in rows for _ in row.records]
    held = contests(rows.records, study.tables, rows.choices)
    limits = Limits({choice.label: row_of[choice.index[0]] for choice in rows.choices}, rows, held)
    return ComparedMethods(held[0], limits, len(held[0].differences)).answer()


def overlap(one: PlaceAnswer, other: PlaceAnswer) -> bool:
    """Whether the intervals of each method that both name overlap."""
    intervals = [{s.choice.label: known(s.interval) for s in run.best} for run in (one, other)]
    return all(
        interval.low <= intervals[1][label].high and intervals[1][label].low <= interval.high
        for label, interval in intervals[0].items()
        if label in intervals[1]
    )


def runs(
    draw: np.random.Generator, values: dict[str, float], seeds: int, grouped: bool = False, step: float = 1
) -> Outcome:
    """step: the ratio of one method's memory to the next one's; 1: as in PEAKS."""
    noise = Noise(seed_points=1.0, **({} if grouped else FLAT))
    items = int(draw.integers(2**32))
    one, other = (decided(draw, values, seeds, noise, items, step) for _ in range(2))
    if not overlap(one, other):
        return dict.fromkeys(("differs", "other method", "other cheap", "other tie"), math.nan)
    takes = [run.decision.take for run in (one, other)]
    differs = takes[0] != takes[1] or one.decision.under != other.decision.under
    limits = [run.decision.under for run in (one, other)]
    return {
        "differs": differs,
        "other method": None not in takes and takes[0] != takes[1],
        "other cheap": any(limits[0][name] != limits[1][name] for name in limits[0].keys() & limits[1].keys()),
        "other tie": one.decision.tied != other.decision.tied,
    }


@situation("a rerun decides otherwise", **cases({"six equal": EQUAL} | WORSE | CLEAR, SEEDS | ONE))
def same(draw: np.random.Generator, values: dict[str, float], seeds: int, grouped: bool = False) -> Outcome:
    found = runs(draw, values, seeds, grouped)
    return {"wrong": found.pop("differs")} | found


FALSE = {"six equal": EQUAL, "two equal, four much worse": dict.fromkeys(SIX, 0.3) | {"full": 0.5, "qlora": 0.5}}


@situation("a method taken that is no better", **cases(FALSE, {"2 seeds": {"seeds": 2}} | SEEDS))
def taken(draw: np.random.Generator, values: dict[str, float], seeds: int, grouped: bool = False) -> Outcome:
    """One run. Of two equal methods and some that are much worse the chance is highest."""
    noise = Noise(seed_points=1.0, **({} if grouped else FLAT))
    return {"wrong": decided(draw, values, seeds, noise, int(draw.integers(2**32)), 1).decision.take is not None}


ALIKE = {
    f"six equal, memory {100 * (step - 1):.0f}% apart": {"values": EQUAL, "seeds": 3, "step": step} for step in NEAR
}


@situation("a rerun takes another method", **cases(BORDER, SEEDS))
def border(draw: np.random.Generator, values: dict[str, float], seeds: int, grouped: bool = False) -> Outcome:
    found = runs(draw, values, seeds, grouped)
    return {"wrong": found.pop("other method")} | found


@situation("a rerun names another for its memory", **ALIKE)
def cheap(draw: np.random.Generator, values: dict[str, float], seeds: int, step: float) -> Outcome:
    found = runs(draw, values, seeds, step=step)
    return {"wrong": found.pop("other cheap")} | found
