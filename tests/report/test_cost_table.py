"""The table of cost against score: its front, what is beaten, and the cheapest setting that is not."""

from __future__ import annotations

import pandas as pd
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


def test_cells_without_a_time_of_their_own_have_no_cost(tmp_path):
    """A resumed cell's time is that of its last process alone; what ran beside others took their time, too."""
    records = costed_study(tmp_path, seeds=(0, 1))
    lora, full = ([record for record in records if record.cell.method == method] for method in ("lora", "full"))
    for record in (lora[0], *full):
        record.train.resumed_at = [1]
    (table,) = costs(records, tmp_path, price=2.0)
    cost = {row[table.columns.index("Method")]: row[table.columns.index("Cost")] for row in table.rows}
    assert cost["lora"] == "$2.02"  # of the seed that was not interrupted
    assert "full" not in cost
    assert ". Without full: other cells ran on the machine at the same time, or they were resumed" in table.answer[0]

    boot = {"boot": "1", "device": {"id": "0"}}
    for record in records:
        record.environment = record.environment | boot  # all began at the same time
    with pytest.raises(UserError, match=r"^No cell has a cost: other cells ran on the machine at the same time"):
        costs(records, tmp_path, price=2.0)


@pytest.mark.slow
def test_it_needs_a_price(harness):
    run = harness("table", "--study", "quickstart", "--results-dir", str(ROOT / "results/reference"), "--cost")
    assert run.returncode == 2
    assert "error: --cost requires --price, dollars for an hour of one device." in run.stderr


def test_of_a_single_run_nothing_is_said_beside_methods_of_several_seeds(tmp_path):
    records = costed_study(tmp_path, seeds=(0, 1))
    records = [record for record in records if (record.cell.method, record.cell.seed) != ("lora", 1)]
    (table,) = costs(records, tmp_path, price=2.0)
    assert table.answer[0].startswith("The cheapest setting that no other beats significantly on gsm8k is full: ")
    beaten = {row[0]: row[table.columns.index("Beaten by")] for row in table.rows}
    assert "lora" not in " ".join(beaten.values())


def test_what_is_compared_may_have_no_cost(tmp_path):
    records = costed_study(tmp_path, seeds=(0, 1))
    records = [record for record in records if (record.cell.method, record.cell.seed) != ("lora", 1)]
    for record in records:
        if record.cell.method != "lora":
            record.train.resumed_at = [1]
    (table,) = costs(records, tmp_path, price=2.0)
    assert table.answer[0].startswith("No setting that is compared on gsm8k has a time of its own: none is known")


def test_what_answered_other_items_is_not_the_cheapest(tmp_path):
    records = costed_study(tmp_path)
    path = tmp_path / f"{records[0].cell.name}.items.parquet"
    pd.read_parquet(path).iloc[:300].to_parquet(path, index=False)
    records[0].scores[0].n = 300
    (table,) = costs(records, tmp_path, price=2.0)
    assert records[0].cell.method == "lora"
    assert table.answer[0].startswith("The cheapest setting that no other beats significantly on gsm8k is full: ")
