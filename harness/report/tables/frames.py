"""What the first table of a study says, as data frames: for notebooks and further analysis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.record import Record
from harness.report.frame import TRAIN_MEMORY
from harness.report.pairwise import Contest, contests
from harness.report.select import Choice
from harness.report.tables.advice import headline
from harness.report.tables.rows import Row, group

COSTS = (TRAIN_MEMORY, "tokens_per_second_steady", "validation_loss")


def chosen(records: Sequence[Record], folder: Path | None) -> pd.DataFrame:
    """One row for each method of a model and a data set: its chosen setting, what it costs and how it scores.

    model, data, method                 text
    setting                             text; null if none could be chosen, as are then all numbers but tries
    tries, seeds                        how many settings were tried; with how many seeds the chosen one finished
    train_allocated_peak                bytes, mean over seeds, as are:
    tokens_per_second_steady            raw tokens / second
    validation_loss                     nats per token; of pairs, nats per pair
    score                               the score by which methods are compared: that of the data's own task, or the
                                        first one
    value, low, high                    its mean and 95% interval, as its task defines it (a fraction of 1 for an
                                        accuracy)
    letters                             methods that share one can't be told apart; null without a test

    folder: of the study, where the items are; None: intervals cover less, and nothing is tested.
    """
    rows = group(records)
    held = contests(rows.records, folder, rows.choices)
    row_of = [row for row in rows for _ in row.records]
    found = []
    for choice in rows.choices:
        row = row_of[choice.index[0]] if choice.index else None
        found.append(
            {
                **_place(choice.place),
                "method": choice.label,
                "setting": choice.setting,
                "tries": choice.tries,
                "seeds": len(choice.index),
                **_costs(row),
                **_standing(choice, headline(held, choice.place)),
            }
        )
    return pd.DataFrame(found)


def _standing(choice: Choice, contest: Contest | None) -> dict[str, str | float | None]:
    standing = next((s for s in contest.standings if s.choice == choice), None) if contest else None
    if contest is None or standing is None:
        return dict.fromkeys(("score", "value", "low", "high", "letters"))
    interval = standing.interval
    return {
        "score": contest.score,
        "value": standing.value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "letters": standing.letters,
    }


def pairs(records: Sequence[Record], folder: Path | None) -> pd.DataFrame:
    """One row for each two methods that answered the same items, each in its chosen setting, the better one first.

    model, data, score, better, other   text
    difference, low, high               the first's mean minus the second's, with its 95% interval
    p                                   of the test that it is 0; null if the pair was not tested
    corrected                           p by Holm's correction over all pairs of the study
    decision                            different, equivalent or not decided: `Contest.decision`
    """
    rows = group(records)
    held = contests(rows.records, folder, rows.choices)
    return pd.DataFrame([row for contest in held if contest.primary for row in _pairs(contest)], columns=PAIRS)


PAIRS = ["model", "data", "score", "better", "other", "difference", "low", "high", "p", "corrected", "decision"]


def _pairs(contest: Contest) -> list[dict[str, Any]]:
    return [
        {
            **_place(contest.place),
            "score": contest.score,
            "better": better,
            "other": other,
            "difference": gap.value,
            "low": gap.low,
            "high": gap.high,
            "p": gap.p if (better, other) in contest.corrected else None,
            "corrected": contest.corrected.get((better, other)),
            "decision": contest.decision(other, better),
        }
        for (better, other), gap in contest.differences.items()
    ]


def _place(place: tuple[str, str, str]) -> dict[str, str]:
    _, model, data = place
    return {"model": model, "data": data}


def _costs(row: Row | None) -> dict[str, float | None]:
    return {name: row.mean(name) if row else None for name in COSTS}
