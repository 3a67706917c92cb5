"""The table of cost against score: its front, what is beaten, and the cheapest setting that is not."""

from __future__ import annotations

import pytest
from costed import costed_study

from harness.config import ROOT
from harness.errors import UserError
from harness.report.tables.best import costs


@pytest.fixture
def study(tmp_path):
    return costed_study(tmp_path), tmp_path


def test_the_cheapest_setting_that_none_beats_is_named(study):
    (table,) = costs(*study, price=2.0)
    by_method = {
        each[table.columns.index("Method")]: dict(zip(table.columns, each, strict=True)) for each in table.rows
    }
    assert [*by_method] == ["lora", "dora", "full", "galore"]  # cheapest first
    assert {name: each["Cost"] for name, each in by_method.items()} == {
        "lora": "$2.00",
        "dora": "$4.00",
        "full": "$6.00",
        "galore": "$8.00",
    }
    assert [name for name, each in by_method.items() if each["On the front"] == "yes"] == ["lora", "full"]
    assert by_method["lora"]["Beaten by"] == by_method["full"]["Beaten by"] == "–"
    assert "lora" in by_method["galore"]["Beaten by"]
    (sentence,) = table.answer
    assert sentence.startswith("The cheapest setting that no other beats significantly on gsm8k is lora: 55% (")
    assert " at $2.00; full scored highest, 56% (" in sentence
    assert sentence.endswith(" at $6.00.")
    assert by_method["lora"]["Score"] in sentence


def test_a_study_without_scores_has_no_costs_to_weigh(study):
    records, folder = study
    for record in records:
        record.scores = []
    with pytest.raises(UserError, match=r"^--cost requires finished cells with scores and times\.$"):
        costs(records, folder, price=2.0)


@pytest.mark.slow
def test_it_needs_a_price(harness):
    run = harness("table", "--study", "quickstart", "--results-dir", str(ROOT / "results/reference"), "--cost")
    assert run.returncode == 2
    assert "error: --cost requires --price, dollars for an hour of one device." in run.stderr
