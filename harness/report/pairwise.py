"""Compares the methods of a study pairwise, each in its chosen setting: scores with intervals, differences, ties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.record import Record, Score
from harness.report import statistics
from harness.report.frame import frame, score_name
from harness.report.select import Choice, select
from harness.report.statistics import ALPHA, Difference, Interval


@dataclass(frozen=True)
class Standing:
    """One method's score in its chosen setting.

    interval: mean over seeds with a 95% interval (`statistics.mean_intervals`, or `statistics.summary_interval` without
        items); None if the error is unknown.
    letters: methods that share a letter are tied; None if the method could not be paired with others.
    """

    choice: Choice
    value: float
    interval: Interval | None
    letters: str | None = None


@dataclass(frozen=True)
class Contest:
    """The methods of one place compared by one score, best first.

    score: its name in `frame`, TASK/METRIC/FILTER.
    differences: for pairs of `Choice.label`, the better first: the first's mean less the second's.
    corrected: their p-values by Holm, over all differences of all contests that were made together.
    one_seed: labels of methods with a single seed: conclusions hold for the trained models, not for other seeds.
    """

    place: tuple[str, str, str]
    score: str
    higher_is_better: bool
    standings: list[Standing]
    differences: dict[tuple[str, str], Difference]
    corrected: dict[tuple[str, str], float]
    one_seed: list[str]


def contests(records: Sequence[Record], folder: Path | None, choices: Sequence[Choice] | None = None) -> list[Contest]:
    """A contest for each place and score, among the chosen settings that have the score with every seed.

    records: in the order of the frame that `choices` refer to. folder: of the study, where the items are; None compares
    nothing. choices: by default each method's best setting.

    Two methods differ if the corrected p-value of their difference is below 0.05; otherwise they share a letter. Only
    methods that answered the same items, with equal shots and task version, are paired.
    """
    choices = select(frame(records)) if choices is None else choices
    found = []
    for place in dict.fromkeys(choice.place for choice in choices):
        here = [choice for choice in choices if choice.place == place]
        scores = [{score_name(score): score for i in choice.index for score in records[i].scores} for choice in here]
        for name in dict.fromkeys(name for own in scores for name in own):
            found.append(_contest([[records[i] for i in choice.index] for choice in here], here, name, folder))
    return _lettered([contest for contest in found if contest.standings])


def items(folder: Path, records: Sequence[Record], name: str) -> tuple[np.ndarray, tuple] | None:
    """(seeds, items) values of the score `name` of one setting's records, and an identifier of the items.

    None if a file is missing or lacks the score, or if two seeds answered different items.
    """
    found = [_read(folder, record, name) for record in records]
    if not all(found) or len({which for _, which in found}) != 1:
        return None
    return np.stack([values for values, _ in found]), found[0][1]


def answers(folder: Path, record: Record, name: str) -> pa.Table | None:
    """The answers to each item of the score `name`, sorted by subject and index.

    Columns subject, item, hash, value, prediction and target; None if the record's file is missing or lacks them.
    """
    score = score_of(record, name)
    return score and _table(folder, record, score, ["subject", "item", "hash", "value", "prediction", "target"])


def _read(folder: Path, record: Record, name: str) -> tuple[np.ndarray, tuple] | None:
    """The values sorted by subject and index; only the columns needed are read."""
    score = score_of(record, name)
    table = score and _table(folder, record, score, ["subject", "item", "value"])
    if not table or len(table) < 2:
        return None
    which = (score.num_fewshot, score.version, *table["subject"].to_pylist(), *table["item"].to_pylist())
    return table["value"].to_numpy(), which


def _table(folder: Path, record: Record, score: Score, columns: list[str]) -> pa.Table | None:
    wanted = [(name, "=", getattr(score, name)) for name in ("task", "metric", "filter")]
    try:
        table = pq.read_table(folder / f"{record.cell.name}.items.parquet", columns=columns, filters=wanted)
    except (OSError, ValueError, KeyError):  # missing, not Parquet, or other columns
        return None
    return table.sort_by([("subject", "ascending"), ("item", "ascending")])


def score_of(record: Record, name: str) -> Score | None:
    return next((score for score in record.scores if score_name(score) == name), None)


def _contest(groups: list[list[Record]], choices: list[Choice], name: str, folder: Path | None) -> Contest:
    """A contest without letters. groups: the records of each choice."""
    standings, samples = [], {}
    higher = True
    for choice, records in zip(choices, groups, strict=True):
        scores = [score for record in records if (score := score_of(record, name))]
        if not records or len(scores) < len(records):
            continue
        higher = scores[0].higher_is_better
        values = [score.value for score in scores]
        interval = statistics.summary_interval(values, [score.stderr for score in scores])
        standings.append(Standing(choice, float(np.mean(values)), interval))
        if folder and (found := items(folder, records, name)):
            samples[choice.label] = found
    common = Counter(which for _, which in samples.values()).most_common(1)
    paired = {label: values for label, (values, which) in samples.items() if which == common[0][0]}
    intervals = {}
    for group in [paired, *({label: found[0]} for label, found in samples.items() if label not in paired)]:
        if group:
            intervals |= zip(group, statistics.mean_intervals(list(group.values())), strict=True)
    standings = [replace(s, interval=intervals.get(s.choice.label, s.interval)) for s in standings]
    standings.sort(key=lambda standing: -standing.value if higher else standing.value)
    order = [standing.choice.label for standing in standings if standing.choice.label in paired]
    gaps = statistics.differences([paired[label] for label in order]) if len(order) > 1 else {}
    return Contest(
        place=choices[0].place,
        score=name,
        higher_is_better=higher,
        standings=standings,
        differences={(order[i], order[j]): gap for (i, j), gap in gaps.items()},
        corrected={},
        one_seed=[c.label for c, group in zip(choices, groups, strict=True) if _single(group)],
    )


def _single(records: list[Record]) -> bool:
    return len(records) == 1 and records[0].cell.seed is not None


def _lettered(found: list[Contest]) -> list[Contest]:
    """Each contest with corrected p-values and letters."""
    corrected = iter(statistics.holm([gap.p for contest in found for gap in contest.differences.values()]))
    return [_with_letters(contest, {pair: float(next(corrected)) for pair in contest.differences}) for contest in found]


def _with_letters(contest: Contest, corrected: dict[tuple[str, str], float]) -> Contest:
    order = list(dict.fromkeys(label for pair in corrected for label in pair))
    different = np.zeros((len(order), len(order)), dtype=bool)
    for (one, other), p in corrected.items():
        i, j = order.index(one), order.index(other)
        different[i, j] = different[j, i] = p < ALPHA
    letters = dict(zip(order, statistics.letters(different), strict=True))
    standings = [replace(standing, letters=letters.get(standing.choice.label)) for standing in contest.standings]
    return replace(contest, standings=standings, corrected=corrected)
