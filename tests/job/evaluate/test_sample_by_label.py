"""eval.limit on answers that are labels: of each label its share, and the same items in every cell."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from job_helpers import composed

from harness.job import prepared_inputs

OF = {"billing": 120, "login": 60, "legal": 20}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"question": f"Ticket {i} about {label}", "answer": label} for label, count in OF.items() for i in range(count)
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def drawn(*overrides: str) -> list[tuple[int, str]]:
    settings = composed(
        *("model=tiny", "data=local", "data.path=mine.jsonl", "data.test_share=0.5", "eval.tasks=[held_out]"),
        *overrides,
    ).settings
    tasks = prepared_inputs.tasks(settings.eval, settings.data, None)
    docs = tasks.leaves["held_out"].eval_docs
    return [(item, docs[item]["answer"]) for item in tasks.sample["held_out"]]


@pytest.mark.parametrize(
    ("limit", "counts"), [(10, (6, 3, 1)), (20, (12, 6, 2)), (99, (59, 30, 10)), (1000, (60, 30, 10))]
)
def test_each_label_has_its_share_of_the_sample(limit, counts):
    sample = drawn(f"eval.limit={limit}")
    assert Counter(label for _, label in sample) == dict(zip(OF, counts, strict=True))
    assert sample == sorted(set(sample))


def test_the_sample_depends_on_its_seed_alone():
    assert drawn("eval.limit=20") == drawn("eval.limit=20", "method=full", "seed=3")
    assert drawn("eval.limit=20") != drawn("eval.limit=20", "eval.seed=1")


def test_answers_without_labels_are_sampled_as_before():
    of_labels = [item for item, _ in drawn("eval.limit=20")]
    as_text = [item for item, _ in drawn("eval.limit=20", "data.answers=text")]
    assert len(as_text) == 20
    assert as_text != of_labels
