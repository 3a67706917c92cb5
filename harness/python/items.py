"""The answers of each method's chosen setting to single items, as a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from harness.record import Record
from harness.report.items.answered import AnsweredItems, answers
from harness.report.pairwise import Contest, score_of

COLUMNS = ["study", "model", "data", "method", "seed", "score", "subject", "item", "value"]


def items_of(contests: Sequence[Contest], records: Sequence[Record], folder: Path) -> pd.DataFrame:
    """The answers behind those of `contests` that are tested; `RecordedStudy.items` has the columns.

    records: those whose positions the choices of the contests refer to. folder: of the study, where the items are.
    """
    frames = [
        _frame(contest, standing.choice.label, records[i].cell.seed, answered)
        for contest in contests
        if contest.primary
        for standing in contest.standings
        for i in standing.choice.index
        if (score := score_of(records[i], contest.score)) and (answered := answers(folder, records[i], score))
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _frame(contest: Contest, method: str, seed: int | None, answers: AnsweredItems) -> pd.DataFrame:
    n = len(answers)
    study, model, data = contest.place
    names = {"study": study, "model": model, "data": data, "method": method}
    answered = {"subject": answers.subject_of(np.arange(n)), "item": answers.numbers, "value": answers.values}
    seeds = pd.array([seed] * n, dtype="Int64")
    return pd.DataFrame({**names, "seed": seeds, "score": contest.score, **answered}, columns=COLUMNS)
