"""Answers to items read in batches: the same as read whole, whatever their order, clusters and texts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records import make_record

from harness.record import cluster_numbers
from harness.report.items import answered
from harness.report.items.answered import answers
from harness.report.statistics import Answers, ranks

ITEMS = 500


@pytest.fixture
def rows():
    draw = np.random.default_rng(3)
    score = make_record().scores[0]
    same = {"task": score.task, "metric": score.metric}
    found = []
    for i in draw.permutation(ITEMS).tolist():
        subject, name = f"subject {draw.integers(4)}", draw.choice(["a", "b", "c", "", None])
        for kind in (score.filter, "another"):  # of which the second is no part of the score
            texts = {"prediction": f"{kind} {i}", "target": str(i), "hash": f"{i:064x}", "question": None}
            value = float(draw.integers(2))
            found.append(
                same | texts | {"filter": kind, "subject": subject, "item": i, "value": value, "cluster": name}
            )
    return found


@pytest.fixture(params=["file", "table"])
def read(request, rows, tmp_path, monkeypatch):
    """The answers, read in batches of 7 rows."""
    record = make_record()
    monkeypatch.setattr(answered, "ROWS", 7)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / f"{record.cell.name}.items.parquet", row_group_size=300)
    folder = tmp_path if request.param == "file" else {record.cell.name: table}
    return answers(folder, record, record.scores[0], texts=True)


@pytest.fixture
def expected(rows):
    return sorted((row for row in rows if row["filter"] != "another"), key=lambda row: (row["subject"], row["item"]))


def test_answers_are_sorted_and_of_one_score(read, expected):
    assert len(read) == ITEMS
    assert read.subject_of(np.arange(ITEMS)) == [row["subject"] for row in expected]
    assert read.numbers.tolist() == [row["item"] for row in expected]
    assert read.values.tolist() == [row["value"] for row in expected]


def test_clusters_are_those_of_the_record(read, expected):
    for part in (slice(None), *read.places.values(), slice(3, 4)):
        here = expected[part]
        named = cluster_numbers([row["subject"] for row in here], [row["cluster"] for row in here])
        assert read.clusters(part).tolist() == named


def test_texts_are_those_of_the_items_asked_for(read, expected):
    at = np.array([499, 0, 17, 3])
    assert read.texts("prediction", at) == [expected[i]["prediction"] for i in at]
    assert read.texts("target", at, len) == [len(expected[i]["target"]) for i in at]
    assert read.texts("question", at) == read.texts("no such column", at) == [None] * 4


def test_a_file_with_far_more_items_than_its_score_counts_is_none_of_its_items(rows, tmp_path, monkeypatch):
    record = make_record()
    score = record.scores[0]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{record.cell.name}.items.parquet")
    monkeypatch.setattr(answered, "SURPLUS", ITEMS - score.n)
    assert len(answers(tmp_path, record, score)) == ITEMS
    monkeypatch.setattr(answered, "SURPLUS", ITEMS - score.n - 1)
    assert answers(tmp_path, record, score) is None


def test_answers_to_other_items_have_another_identity(rows, tmp_path):
    record = make_record()

    def identity(changed):
        return answers({record.cell.name: pa.Table.from_pylist(changed)}, record, record.scores[0], True).identity

    assert identity(rows) == identity(rows[::-1])
    for change in ({"item": 10_000}, {"subject": "elsewhere"}, {"hash": "f" * 64}):
        assert identity([rows[0] | change, *rows[1:]]) != identity(rows)


def test_of_very_many_items_the_best_is_drawn_by_kinds_of_items(monkeypatch):
    draw = np.random.default_rng(0)
    samples = [Answers.independent((draw.random((1, 400)) < share).astype(float)) for share in (0.5, 0.53, 0.4)]
    whole = ranks(samples)
    monkeypatch.setitem(ranks.__globals__, "WEIGHTS", 10_000)
    kinds = ranks(samples)
    assert kinds != whole, "the items were not drawn by kinds"
    for one, other in zip(whole, kinds, strict=True):
        assert one.best == pytest.approx(other.best, abs=0.03)
        assert one.expected == pytest.approx(other.expected, abs=0.04)
