"""Costs as a data frame, and budgets in money from Python."""

from __future__ import annotations

import pandas as pd
import pytest
from costed import costed_study

import harness
from harness.report.tables.best import costs
from harness.report.tables.frames import COSTS

TINY = {"model": "tiny", "methods": ["lora", "full"], "data": "wordmath_short", "settings": {"eval.tasks": []}}


@pytest.fixture
def study(tmp_path):
    costed_study(tmp_path, seeds=(0, 1))
    return harness.read(tmp_path)


def test_the_frame_has_what_the_table_prints(study):
    data = study.costs(price=2.0)
    (table,) = costs(study.records, study.folders[0], price=2.0)
    assert list(data) == COSTS
    assert list(data["method"]) == [row[table.columns.index("Method")] for row in table.rows]
    printed = [row[table.columns.index("Cost")] for row in table.rows]
    assert [f"${dollars:.2f}" for dollars in data["dollars"]] == printed
    front = ["yes" if on else "no" for on in data["on_front"]]
    assert front == [row[table.columns.index("On the front")] for row in table.rows]
    assert list(data["beaten_by"]) == [row[table.columns.index("Beaten by")].replace("–", "") for row in table.rows]
    assert list(data["seeds"]) == [2] * 4
    cheapest = data[data["cheapest"]]["method"].item()
    assert f" is {cheapest}: " in table.answer[0]
    assert (data["device_hours_low"] < data["device_hours"]).all()


def test_without_a_price_there_are_hours_alone(study):
    data = study.costs()
    assert data["dollars"].isna().all()
    assert data["device_hours"].tolist() == pytest.approx([1.005, 2.01, 3.015, 4.02])
    assert data.dtypes["dollars"] == data.dtypes["device_hours"] == "float64"


def test_a_study_without_scores_has_no_rows(study):
    for record in study.records:
        record.scores = []
    assert study.costs(price=2.0).empty
    assert list(study.costs()) == COSTS


@pytest.mark.parametrize(
    ("price", "said"),
    [(-1, "must be positive, got -1"), ("abc", "must be a number, got 'abc'"), (0, "must be positive, got 0")],
)
def test_a_price_that_is_none_is_refused(study, price, said):
    with pytest.raises(harness.UserError, match=rf"^price {said}\.$"):
        study.costs(price=price)
    with pytest.raises(harness.UserError, match=rf"^price {said}\.$"):
        harness.plan("tiny", price=price)


def test_devices_of_several_kinds_are_refused(study):
    for record, name in zip(study.records, ("NVIDIA L4", "Tesla T4"), strict=False):
        record.environment = {"device": {"type": "cuda", "name": name}}
    with pytest.raises(harness.UserError, match=r"^Cost against score requires records of one kind of device, got "):
        study.costs(price=1.0)


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_keeps_to_a_budget_in_money():
    data = harness.plan(**TINY, budget="500USD", price=3.6, throughput=10.0)
    assert isinstance(data, pd.DataFrame)
    assert 0 < data["dollars"].sum() < 500
    with pytest.raises(harness.UserError, match=r"^Training 2 cells costs about \$.+, above the budget of 0\.01USD\.$"):
        harness.plan(**TINY, budget="0.01USD", price=3.6, throughput=10.0)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"throughput": 10.0}, {"price": 2.0}, {"price": 2.0, "throughput": 10.0}])
def test_a_budget_in_money_is_not_named_as_the_command_line_does(options):
    with pytest.raises(harness.UserError) as refusal:
        harness.plan(**TINY, budget="0.001USD", **options)
    assert "udget of 0.001USD" in str(refusal.value)
    assert "--" not in str(refusal.value)


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_of_cells_that_run_here_refuses_one_in_words_of_python_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(harness.UserError) as refusal:
        harness.sweep(**TINY, budget="5USD", study="b")
    assert "udget of 5USD" in str(refusal.value)
    assert "--" not in str(refusal.value)
