"""The table of cost against score: its front, what is beaten, and the cheapest setting that is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from records import make_record, make_score

from harness.config import ROOT
from harness.errors import UserError
from harness.record import ValidationPoint, write
from harness.report.tables.best import costs

HOURS = {"lora": 1.0, "full": 3.0, "dora": 2.0, "galore": 4.0}
SHARES = {"lora": 0.60, "full": 0.61, "dora": 0.45, "galore": 0.30}


@pytest.fixture
def study(tmp_path):
    """LoRA and full can't be told apart, full costs three times as much; DoRA and GaLore are worse and cost more."""
    difficulty, records = np.random.default_rng(0).random(400), []
    for method, share in SHARES.items():
        record = make_record(method, seed=0)
        record.validation, record.seconds = [ValidationPoint(50, 20_000, 1.0)], 3600 * HOURS[method]
        noise = np.random.default_rng([7, int(100 * share)]).normal(0, 0.05, 400)
        values = (difficulty + noise < share).astype(float)
        score = make_score(n=400, value=float(values.mean()), stderr=float(values.std(ddof=1) / 20))
        record.scores = [score]
        fixed = {"task": score.task, "subject": score.task, "hash": "0", "filter": score.filter, "metric": score.metric}
        items = pd.DataFrame({"item": range(400), "value": values, "prediction": "1", "target": "1"} | fixed)
        write(record, tmp_path / f"{record.cell.name}.json")
        items.to_parquet(tmp_path / f"{record.cell.name}.items.parquet", index=False)
        records.append(record)
    return records, tmp_path


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
