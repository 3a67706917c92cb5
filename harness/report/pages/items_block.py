"""What the page shows of single items: the questions, and what the untuned model and each chosen setting answered.

A page is one file, so what it holds is capped: `CELLS` answers, and a text's beginning or end. The block says what was
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.record import Record
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import place_titles
from harness.report.items.answered import AnsweredItems, answers
from harness.report.items.changed import answer
from harness.report.pages.settings_block import short_id
from harness.report.pairwise import Contest, score_of
from harness.score_names import score_label

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
    first, then by score) with their number of seeds and the id of their first cell, and by item `subject` (a position
    in `subjects`), `number`, `question` (null if it was not recorded), `target`; by model and item `right`, the number
    of seeds that answered it correctly, and `answers`, that of the first seed. `all`: how many items there are;
    `number` may have fewer.
    """
    texts = _Texts()
    contests = [contest for contest in study.contests.values() if contest.primary and contest.higher_is_better]
    titles = place_titles([contest.place for contest in contests])
    candidates = [(title, contest, _models(study, contest)) for title, contest in zip(titles, contests, strict=True)]
    answered = [(title, contest, models) for title, contest, models in candidates if models]
    cells = sum(len(models) * len(models[0][1][0]) for _, _, models in answered)
    share = min(1.0, CELLS / cells) if cells else 1.0
    sets = [_set(title, contest, models, share, texts) for title, contest, models in answered]
    return {"texts": texts.all, "sets": sets}


Model = tuple[dict[str, Any], list[AnsweredItems]]


def _models(study: StudyResults, contest: Contest) -> list[Model]:
    """The models that answered the same items, as most did: label, setting and the answers of each seed."""
    models = []
    for standing in contest.standings:
        records = [study.rows.records[i] for i in standing.choice.index]
        tables = _answers(study.folder, records, contest.score)
        if tables:
            untuned = records[0].cell.seed is None
            head = {"label": standing.choice.label, "setting": standing.choice.setting or "", "untuned": untuned}
            models.append((head | {"cell": short_id(records[0])}, tables))
    item_sets = [tables[0].hashes for _, tables in models]
    usual = max(item_sets, key=item_sets.count, default=b"")
    models = [each for each, items in zip(models, item_sets, strict=True) if items == usual]
    return sorted(models, key=lambda each: (not each[0]["untuned"], each[0]["untuned"] and each[0]["label"] != "base"))


def _answers(folder: Path | None, records: Sequence[Record], score: str) -> list[AnsweredItems]:
    """A table for each seed; none if one is missing, if seeds differ in items, or if values are not right or wrong."""
    if folder is None:
        return []
    tables = []
    for record in records:
        of_record = score_of(record, score)
        table = answers(folder, record, of_record, texts=True) if of_record else None
        if not table or not table.binary:
            return []
        tables.append(table)
    return tables if len({table.hashes for table in tables}) == 1 else []


def _set(title: str, contest: Contest, models: list[Model], share: float, texts: _Texts) -> dict[str, Any]:
    """share: of the items, that on the page, those first on which models differ."""
    first = models[0][1][0]
    metric = contest.score.split("/")[1]
    right = np.array([np.sum([table.values for table in tables], axis=0) for _, tables in models])
    seeds = np.array([[len(tables)] for _, tables in models])
    shares = right / seeds
    differing = (shares != shares[0]).any(axis=0)
    order = np.argsort(~differing, kind="stable")[: max(1, int(share * len(first)))]
    positions = np.sort(order)
    names = list(first.subjects)
    at = {name: i for i, name in enumerate(names)}

    def cut(text: str | None) -> str | None:
        return None if text is None else _end(text, QUESTION)

    def said(text: str) -> str:
        return _end(answer(text, metric), ANSWER)

    questions = first.texts("question", positions, cut)
    targets = first.texts("target", positions, lambda text: _end(str(text), ANSWER))
    return {
        "title": title,
        "score": score_label(*contest.score.split("/", 2)),
        "all": len(first),
        "models": [head | {"seeds": len(tables)} for head, tables in models],
        "subjects": names,
        "subject": [at[name] for name in first.subject_of(positions)],
        "number": first.numbers[positions].tolist(),
        "question": [None if text is None else texts(text) for text in questions],
        "target": list(map(texts, targets)),
        "right": right[:, positions].astype(int).tolist(),
        "answers": [list(map(texts, tables[0].texts("prediction", positions, said))) for _, tables in models],
    }


def _end(text: str, most: int) -> str:
    """The end of a long text, where a question is asked and a worked answer has its result."""
    text = text.strip()
    return text if len(text) <= most else "… " + text[2 - most :]
