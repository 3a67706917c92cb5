"""What the page shows of single items: the questions, and what the untuned model and each chosen setting answered.

A page is one file, so what it holds is capped: `CELLS` answers, and a text's beginning or end. The block says what was
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.record import Record
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import place_titles
from harness.report.forgetting import answer
from harness.report.pairwise import Contest, answers

CELLS = 120_000  # answers on a page: 10,000 items of twelve models
QUESTION, ANSWER = 600, 200  # characters


class _Texts:
    """Texts by number, each once: most answers are given many times."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._at: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._at:
            self._at[text] = len(self.all)
            self.all.append(text)
        return self._at[text]


def items_block(study: StudyResults) -> dict[str, Any]:
    """The items of each place by each task's own score, if that is of right and wrong.

    texts: what the numbers of questions, targets and answers stand for. sets: of each place and score `models` (base
    first, then by score) with their number of seeds, and by item `subject` (a position in `subjects`), `number`,
    `question` (null if it was not recorded), `target`; by model and item `right`, the number of seeds that answered
    it correctly, and `answers`, that of the first seed. `all`: how many items there are; `number` may have fewer.
    """
    texts = _Texts()
    contests = [contest for contest in study.contests.values() if contest.primary and contest.higher_is_better]
    titles = place_titles([contest.place for contest in contests])
    found = [(title, contest, _models(study, contest)) for title, contest in zip(titles, contests, strict=True)]
    read = [(title, contest, models) for title, contest, models in found if models]
    cells = sum(len(models) * len(models[0][1][0]) for _, _, models in read)
    kept = min(1.0, CELLS / cells) if cells else 1.0
    sets = [_set(title, contest, models, kept, texts) for title, contest, models in read]
    return {"texts": texts.all, "sets": sets}


Model = tuple[dict[str, Any], list[pa.Table]]


def _models(study: StudyResults, contest: Contest) -> list[Model]:
    """The models that answered the same items, as most did: label, setting and the answers of each seed."""
    found = []
    for standing in contest.standings:
        records = [study.rows.records[i] for i in standing.choice.index]
        tables = _answers(study.folder, records, contest.score)
        if tables:
            untuned = records[0].cell.seed is None
            head = {"label": standing.choice.label, "setting": standing.choice.setting or "", "untuned": untuned}
            found.append((head, tables))
    asked = [tuple(tables[0]["hash"].to_pylist()) for _, tables in found]
    usual = max(asked, key=asked.count, default=())
    found = [each for each, items in zip(found, asked, strict=True) if items == usual]
    return sorted(found, key=lambda each: (not each[0]["untuned"], each[0]["untuned"] and each[0]["label"] != "base"))


def _answers(folder: Path | None, records: Sequence[Record], score: str) -> list[pa.Table]:
    """A table for each seed; none if one is missing, if seeds differ in items, or if values are not right or wrong."""
    tables = [answers(folder, record, score) for record in records] if folder else []
    if not tables or not all(tables):
        return []
    same = all(table["hash"].equals(tables[0]["hash"]) for table in tables)
    binary = all(set(table["value"].to_pylist()) <= {0.0, 1.0} for table in tables)
    return tables if same and binary else []


def _set(title: str, contest: Contest, models: list[Model], kept: float, texts: _Texts) -> dict[str, Any]:
    """kept: the share of the items that is on the page, those first on which models differ."""
    first = models[0][1][0]
    metric = contest.score.split("/")[1]
    right = np.array([np.sum([table["value"].to_numpy() for table in tables], axis=0) for _, tables in models])
    seeds = np.array([[len(tables)] for _, tables in models])
    shares = right / seeds
    differing = (shares != shares[0]).any(axis=0)
    order = np.argsort(~differing, kind="stable")[: max(1, int(kept * len(first)))]
    chosen = np.sort(order)
    rows = pa.array(chosen)
    subjects = first["subject"].to_pylist()
    names = list(dict.fromkeys(subjects))
    at = {name: i for i, name in enumerate(names)}
    questions = first["question"].take(rows).to_pylist() if "question" in first.column_names else [None] * len(chosen)
    return {
        "title": title,
        "score": contest.score.removesuffix("/none").replace("/", " "),
        "all": len(first),
        "models": [head | {"seeds": len(tables)} for head, tables in models],
        "subjects": names,
        "subject": [at[subjects[i]] for i in chosen],
        "number": first["item"].take(rows).to_pylist(),
        "question": [None if text is None else texts(_end(text, QUESTION)) for text in questions],
        "target": [texts(_end(str(text), ANSWER)) for text in first["target"].take(rows).to_pylist()],
        "right": right[:, chosen].astype(int).tolist(),
        "answers": [
            [texts(_end(answer(text, metric), ANSWER)) for text in tables[0]["prediction"].take(rows).to_pylist()]
            for _, tables in models
        ],
    }


def _end(text: str, most: int) -> str:
    """The end of a long text, where a question is asked and a worked answer has its result."""
    text = text.strip()
    return text if len(text) <= most else "… " + text[2 - most :]
